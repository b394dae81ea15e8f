"""The service as its clients see it: a process of its own, asked over HTTP."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from recbole_diffurec import Recommender, cli

pytest.importorskip("fastapi", reason="the service needs fastapi")

HISTORIES = [["50", "172", "1"], ["1"], ["7", "50", "nothing", "181", "7", "100"], []]


@pytest.fixture(scope="module")
def path(trained) -> Path:
    return trained["DiffuRecSys"]


@pytest.fixture(scope="module")
def service(path):
    """The address of a running service, whose end is checked as well."""
    command = [sys.executable, "-m", "recbole_diffurec", "serve", str(path), "--port=0", "--max_batch=8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("serving"), process.stderr.read()
    yield line.split()[1].rstrip("/")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def ask(service, **request):
    return requests.post(f"{service}/recommend", json={"histories": HISTORIES, "k": 5, **request}, timeout=60)


def test_lists_are_those_of_python(path, service):
    expected = Recommender.load(path).recommend(HISTORIES, k=5, exclude_seen=True)
    lists = ask(service, exclude_seen=True).json()["lists"]
    assert [item["item_id"] for one in lists for item in one["items"]] == expected["item_id"].tolist()
    scores = [item["score"] for one in lists for item in one["items"]]
    assert scores == pytest.approx(expected["score"].astype(float).tolist(), rel=1e-4)
    assert [one["popular"] for one in lists] == [False, False, False, True]
    assert [one["unknown_items"] for one in lists] == [0, 0, 1, 0]


def test_steps_and_samples_of_a_request(path, service):
    one_step = Recommender.load(path, sampling_steps=1).recommend(HISTORIES, k=5, samples=3)
    lists = ask(service, sampling_steps=1, samples=3).json()["lists"]
    assert [item["item_id"] for one in lists for item in one["items"]] == one_step["item_id"].tolist()
    assert [item["frequency"] for one in lists for item in one["items"]] == one_step["frequency"].tolist()
    assert lists[0]["spread"] == pytest.approx(one_step["spread"].iloc[0], rel=1e-3)


def test_many_clients_are_scored_together(path, service):
    """Equal requests share batches, unequal ones do not mix, and everybody gets the own list."""

    def batches() -> tuple[float, float]:
        text = requests.get(f"{service}/metrics", timeout=60).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        count, total = (float(values[f"recbole_diffurec_batch_histories_{part}"]) for part in ("count", "sum"))
        return count, total

    recommender = Recommender.load(path)
    count_before, sum_before = batches()
    wanted = [{"histories": [HISTORIES[i % 4]], "k": 3 + i % 2} for i in range(64)]
    with ThreadPoolExecutor(32) as threads:
        responses = list(threads.map(lambda request: ask(service, **request).json(), wanted))
    for request, response in zip(wanted, responses):
        expected = recommender.recommend(request["histories"], k=request["k"])["item_id"].tolist()
        assert [item["item_id"] for item in response["lists"][0]["items"]] == expected
    count, total = batches()
    assert total - sum_before == 64 and count - count_before < 64
    text = requests.get(f"{service}/metrics", timeout=60).text
    assert 'recbole_diffurec_responses_total{path="/recommend",status="200"}' in text


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"k": 0}, 422, "greater than or equal to 1"),
        ({"k": 1001}, 422, "less than or equal to 1000"),
        ({"histories": []}, 422, "at least 1 item"),
        ({"histories": [["1"] * 1001]}, 422, "at most 1000 items"),
        ({"histories": [["1"]] * 257}, 422, "at most 256 items"),
        ({"histories": [[{"a": 1}]]}, 422, "valid string"),
        ({"histories": [["1"]] * 100, "samples": 100}, 422, "histories times samples must not exceed 2560"),
        ({"histories": [["x" * 201]]}, 422, "at most 200 characters"),
        ({"histories": [[None] * 1000] * 100}, 422, "valid string"),
        ({"sampling_steps": 33}, 400, "sampling_steps must be an integer from 1 to 32, got 33"),
        ({"diversity": 0.5}, 400, "diversity spreads a list over samples"),
        ({"histories": [["x" * 1_000_000]]}, 413, "larger than 1,000,000 bytes"),
    ],
)
def test_what_is_refused(service, request_, status, message):
    response = ask(service, **request_)
    assert response.status_code == status and message in response.text
    assert ask(service).status_code == 200


@pytest.mark.parametrize("value", ['{"histories": [["1"]], "diversity": NaN}', '{"histories": [["\\ud800"]], "k": 0}'])
def test_what_json_cannot_hold_is_not_sent_back(service, value):
    response = requests.post(
        f"{service}/recommend", data=value, headers={"content-type": "application/json"}, timeout=9
    )
    assert response.status_code == 422 and len(response.text) < 1000


def test_an_unannounced_body_is_limited_too(service):
    chunks = (b"x" * 100_000 for _ in range(20))
    response = requests.post(f"{service}/recommend", data=chunks, timeout=60)
    assert response.status_code == 413


def test_the_other_paths(path, service):
    health = requests.get(f"{service}/healthz", timeout=60).json()
    assert (health["status"], health["model"], health["sampling_steps"]) == ("ok", "DiffuRecSys", 2)
    found = requests.get(f"{service}/items", params={"query": "17", "limit": 3}, timeout=60).json()
    recommender = Recommender.load(path)
    popularity = dict(zip(recommender.items, recommender.popularity.tolist()))
    expected = sorted((i for i in recommender.items[1:] if "17" in i), key=lambda i: -popularity[i])
    assert [popularity[i] for i in found] == [popularity[i] for i in expected[:3]]
    page = requests.get(f"{service}/", timeout=60)
    assert page.headers["content-type"].startswith("text/html") and "recommend" in page.text
    assert "/recommend" in requests.get(f"{service}/openapi.json", timeout=60).json()["paths"]
    assert requests.get(f"{service}/nothing", timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=65536"], "port must be from 0 to 65535, got 65536"),
        (["--max_batch=0"], "max_batch must be at least 1, got 0"),
        (["--host=192.0.2.1"], "cannot listen on '192.0.2.1' port 8000 (Cannot assign"),
        (["--host=no.such.host.invalid"], "cannot listen on 'no.such.host.invalid' port 8000 (no such address)"),
        (["--host=a..b"], "cannot listen on 'a..b' port 8000 (no such address)"),
        (["--path=x"], "unknown parameter 'path'"),
        (["--sampling_steps=99"], "sampling_steps"),
    ],
)
def test_mistakes(path, arguments, message, capsys):
    assert cli.main(["serve", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_taken_port(path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(path), f"--port={port}"]) == 2
    assert f"cannot listen on '127.0.0.1' port {port} (Address already in use)" in capsys.readouterr().err
