"""Lists of several items over HTTP: those of Python, what is refused, and by how much work."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from recbole_diffurec import Recommender

pytest.importorskip("fastapi", reason="the service needs fastapi")

HISTORIES = [["50", "172", "1"], ["1"], ["7", "50", "nothing", "181"], []]


def ask(service, **request):
    return requests.post(f"{service}/next", json={"histories": HISTORIES, **request}, timeout=60)


def rows_of(answer) -> list[tuple]:
    """As a table of Python has them."""
    return [
        (user, number, rank, item["item_id"])
        for user, of_user in enumerate(answer["histories"])
        for number, one in enumerate(of_user["lists"], 1)
        for rank, item in enumerate(one["items"], 1)
    ]


@pytest.mark.parametrize("asked", [{}, {"next": 2, "samples": 6, "k": 4, "exclude_seen": True}, {"next": 1}])
def test_lists_are_those_of_python(masked_checkpoint, masked_service, asked):
    arguments = {"n" if name == "next" else name: value for name, value in asked.items()}
    expected = Recommender.load(masked_checkpoint).next_lists(HISTORIES, **arguments)
    answer = ask(masked_service, **asked).json()
    assert rows_of(answer) == list(expected[["user_id", "list", "rank", "item_id"]].itertuples(index=False, name=None))
    lists = [one for of_user in answer["histories"] for one in of_user["lists"]]
    assert [i["frequency"] for one in lists for i in one["items"]] == expected["frequency"].tolist()
    known = expected[(expected["rank"] == 1) & ~expected["popular"]]
    probability = [one["probability"] for one in lists if one["probability"] is not None]
    assert probability == pytest.approx(known["probability"].tolist(), rel=1e-4)
    assert [of_user["popular"] for of_user in answer["histories"]] == [False, False, False, True]
    assert [of_user["unknown_items"] for of_user in answer["histories"]] == [0, 0, 1, 0]
    assert answer["histories"][3]["lists"][0]["probability"] is None


def test_steps_and_fields_of_a_request(masked_checkpoint, masked_service):
    """One step draws the slots each for itself, and its lists are others."""
    one_step = Recommender.load(masked_checkpoint, sampling_steps=1)
    expected = one_step.next_lists(HISTORIES, samples=5, columns=["title"])
    answer = ask(masked_service, sampling_steps=1, samples=5, fields=["title"]).json()
    assert [row[3] for row in rows_of(answer)] == expected["item_id"].tolist()
    items = [i for of_user in answer["histories"] for one in of_user["lists"] for i in one["items"]]
    assert [item["fields"] for item in items] == [{"title": title} for title in expected["title"]]
    assert rows_of(ask(masked_service, samples=5).json()) != rows_of(answer)


def test_candidates(masked_checkpoint, masked_service):
    """Unknown ones are counted; where few are left, lists are shorter, and where none is, there are no lists."""
    candidates = ["50", "181", "nothing"]
    expected = Recommender.load(masked_checkpoint).next_lists(
        HISTORIES, samples=5, exclude_seen=True, candidates=candidates
    )
    answer = ask(masked_service, samples=5, exclude_seen=True, candidates=candidates).json()
    assert answer["unknown_candidates"] == 1
    assert [row[3] for row in rows_of(answer)] == expected["item_id"].tolist()
    assert answer["histories"][2]["lists"] == []  # it has seen both
    answer = ask(masked_service, candidates=["nothing"]).json()
    assert answer["unknown_candidates"] == 1
    assert [(one["lists"], one["unknown_items"]) for one in answer["histories"]] == [([], 0), ([], 0), ([], 1), ([], 0)]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"next": 0}, "greater than or equal to 1"),
        ({"next": 4}, "less than or equal to 3"),
        ({"next": "2"}, "valid integer"),
        ({"samples": 0}, "greater than or equal to 1"),
        ({"samples": 101}, "less than or equal to 100"),
        ({"samples": None}, "valid integer"),
        ({"k": 101}, "less than or equal to 100"),
        ({"sampling_steps": 4}, "less than or equal to 3"),
        ({"histories": [["1"]] * 257, "samples": 1}, "at most 256 items"),
        ({"histories": [["1"]] * 26}, "more than 10 samples are drawn for at most 25 histories"),
        ({"diversity": 0.5}, "Extra inputs are not permitted"),
        ({"candidates": []}, "at least 1 item"),
        ({"fields": ["no such"]}, "Input should be"),
    ],
)
def test_what_is_refused(masked_service, request_, message):
    response = ask(masked_service, **request_)
    assert response.status_code == 422 and message in response.text
    assert ask(masked_service, histories=[["1"]] * 26, samples=1).status_code == 200


def test_models_of_the_next_item_alone_say_so(service, masked_service):
    """They do not describe the path, but tell who asks it all the same."""
    for request in ({"histories": HISTORIES}, {}):
        response = requests.post(f"{service}/next", json=request, timeout=60)
        assert response.status_code == 400
        assert response.json() == {
            "detail": "model 'DiffuRecSys' knows the next item alone and draws no lists of several: ask /recommend"
        }
    described = [requests.get(f"{address}/openapi.json", timeout=60).json() for address in (service, masked_service)]
    assert ["/next" in one["paths"] for one in described] == [False, True]
    lives = [requests.get(f"{address}/healthz", timeout=60).json()["next"] for address in (service, masked_service)]
    assert lives == [None, 3]


def test_answers_are_counted_and_timed(masked_service):
    def seen() -> float:
        text = requests.get(f"{masked_service}/metrics", timeout=60).text
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(timed))

    timed = "recbole_diffurec_next_seconds_count"
    before = seen()
    assert ask(masked_service).status_code == 200
    text = requests.get(f"{masked_service}/metrics", timeout=60).text
    assert 'recbole_diffurec_responses_total{path="/next",status="200"}' in text and seen() == before + 1


def test_work_is_histories_times_samples_times_steps_times_items(masked_checkpoint):
    """A list of more items takes more of what may wait, and ends at the next step when nobody waits."""
    from recbole_diffurec.inference.batcher import Batcher, Wanted
    from recbole_diffurec.inference.limits import Refusal
    from recbole_diffurec.inference.lists import ListOptions

    recommender = Recommender.load(masked_checkpoint)
    asked = Wanted(ListOptions(samples=5), 2, slots=3)
    assert asked.work == 5 * 2 * 3

    async def submit(most: int) -> list[bytes]:
        batcher = Batcher(recommender, 256, most, lambda size: None)
        worker = asyncio.create_task(batcher.run())
        try:
            return await batcher.submit(asked, [["50"], ["1"]])
        finally:
            worker.cancel()
            batcher.close()

    assert len(asyncio.run(submit(60))) == 2
    with pytest.raises(Refusal, match="too much work waits"):
        asyncio.run(submit(59))


@pytest.mark.slow
def test_the_largest_request_finds_a_lane(masked_service):
    """Of as many histories as may be asked with as many samples, and of as many samples with as many histories."""
    for histories, samples in ((256, 10), (25, 100)):
        response = ask(masked_service, histories=[["50", "1"]] * histories, samples=samples, k=1)
        assert response.status_code == 200 and len(response.json()["histories"]) == histories


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_the_description_says_all_that_is_answered(masked_service, tmp_path, examples):
    """As for other models, whose paths are these but for one."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    command = [shutil.which("schemathesis", path=Path(sys.executable).parent), "run", f"{masked_service}/openapi.json"]
    options = ["--checks=all", f"--max-examples={examples}", "--seed=1", "--no-color", "--include-path=/next"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0 and "No issues found" in done.stdout, done.stdout + done.stderr
