"""The service as its clients see it: a process of its own, asked over HTTP."""

import asyncio
import json
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from recbole_diffurec import Recommender, cli

pytest.importorskip("fastapi", reason="the service needs fastapi")

HISTORIES = [["50", "172", "1"], ["1"], ["7", "50", "nothing", "181", "7", "100"], []]


def ask(service, **request):
    return requests.post(f"{service}/recommend", json={"histories": HISTORIES, "k": 5, **request}, timeout=60)


def test_lists_are_those_of_python(served_checkpoint, service):
    expected = Recommender.load(served_checkpoint).recommend(HISTORIES, k=5, exclude_seen=True)
    lists = ask(service, exclude_seen=True).json()["lists"]
    assert [item["item_id"] for one in lists for item in one["items"]] == expected["item_id"].tolist()
    scores = [item["score"] for one in lists for item in one["items"]]
    assert scores == pytest.approx(expected["score"].astype(float).tolist(), rel=1e-4)
    assert [one["popular"] for one in lists] == [False, False, False, True]
    assert [one["unknown_items"] for one in lists] == [0, 0, 1, 0]


def test_steps_and_samples_of_a_request(served_checkpoint, service):
    one_step = Recommender.load(served_checkpoint, sampling_steps=1).recommend(HISTORIES, k=5, samples=3)
    lists = ask(service, sampling_steps=1, samples=3).json()["lists"]
    assert [item["item_id"] for one in lists for item in one["items"]] == one_step["item_id"].tolist()
    assert [item["frequency"] for one in lists for item in one["items"]] == one_step["frequency"].tolist()
    assert lists[0]["spread"] == pytest.approx(one_step["spread"].iloc[0], rel=1e-3)


def test_many_clients_are_scored_together(served_checkpoint, service):
    """Equal requests share batches, unequal ones do not mix, and everybody gets the own list."""

    def batches() -> tuple[float, float]:
        text = requests.get(f"{service}/metrics", timeout=60).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        count, total = (float(values[f"recbole_diffurec_batch_histories_{part}"]) for part in ("count", "sum"))
        return count, total

    recommender = Recommender.load(served_checkpoint)
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
        ({"histories": [["1"]] * 26, "samples": 11}, 422, "more than 10 samples are drawn for at most 25 histories"),
        ({"histories": [["x" * 201]]}, 422, "at most 200 characters"),
        ({"histories": [[None] * 1000] * 100}, 422, "valid string"),
        ({"sampling_steps": 33}, 422, "less than or equal to 32"),
        ({"diversity": 0.5}, 422, "diversity spreads a list over samples"),
        ({"candidates": []}, 422, "at least 1 item"),
        ({"exclude": True}, 422, "Extra inputs are not permitted"),
        ({"k": "5"}, 422, "valid integer"),
        ({"k": True}, 422, "valid integer"),
        ({"exclude_seen": "yes"}, 422, "valid boolean"),
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


@pytest.mark.parametrize(
    "item", ["true", "false", "1.5", "NaN", "1e22", "9007199254740994.0", str(10**20 + 1), "null", '["1"]']
)
def test_an_id_is_text_or_a_whole_number_that_is_exact(service, item):
    """``true`` is not the item 1, nor a number the item that it is rounded to."""
    for field in (f'"histories": [["50", {item}]]', f'"histories": [["50"]], "candidates": ["50", {item}]'):
        body = f"{{{field}}}"
        response = requests.post(
            f"{service}/recommend", data=body, headers={"content-type": "application/json"}, timeout=9
        )
        assert response.status_code == 422, body
        assert {"constrained-str", "constrained-int"} >= {one["loc"][-1] for one in response.json()["detail"]}


def test_all_refusals_have_one_form(service):
    """Those of the server itself as well."""
    form = {"content-type": "application/json"}
    asked = [
        (400, requests.get(f"{service}/healthz", headers={"Host": "foreign.example"}, timeout=9)),
        (400, requests.post(f"{service}/recommend", data="[" * 100_000, headers=form, timeout=9)),
        (404, requests.get(f"{service}/healthz/", timeout=9)),
        (405, requests.get(f"{service}/recommend", timeout=9)),
        (413, requests.post(f"{service}/recommend", data="x" * 1_000_001, timeout=9)),
        (415, requests.post(f"{service}/recommend", data='{"histories": [["1"]]}', timeout=9)),
    ]
    for status, response in asked:
        assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
        assert list(response.json()) == ["detail"] and isinstance(response.json()["detail"], str)
    with socket.create_connection(("127.0.0.1", int(service.rsplit(":", 1)[1]))) as client:
        client.sendall(b"no HTTP\r\n\r\n")
        head, body = b"".join(iter(lambda: client.recv(65536), b"")).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"content-type: application/json" in head
    assert list(json.loads(body)) == ["detail"]


def test_a_failure_of_the_service_is_described_and_counted(served_checkpoint):
    from recbole_diffurec.inference import connections
    from recbole_diffurec.inference.limits import Limits
    from recbole_diffurec.inference.service import create_app

    recommender = Recommender.load(served_checkpoint)
    app = create_app(recommender)
    recommender.with_sampling_steps = None
    server = connections.server(app, Limits())
    with connections.listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        response = requests.post(f"{address}/recommend", json={"histories": [["50"]]}, timeout=60)
        counted = requests.get(f"{address}/metrics", timeout=60).text
        server.should_exit = True
        thread.join(20)
    assert (response.status_code, list(response.json())) == (500, ["detail"])
    assert 'responses_total{path="/recommend",status="500"} 1.0' in counted
    for path in app.openapi()["paths"].values():
        for operation in path.values():
            assert operation["responses"].keys() >= {"200", "400", "500"}
            refusals = [answer for status, answer in operation["responses"].items() if status != "200"]
            assert all(list(answer["content"]) == ["application/json"] for answer in refusals)


def test_candidates(served_checkpoint, service):
    """Those that the model does not know are counted; without any other the lists are empty."""
    candidates = ["50", "258", "1", "nothing"]
    expected = Recommender.load(served_checkpoint).recommend(HISTORIES, 5, exclude_seen=True, candidates=candidates)
    response = ask(service, exclude_seen=True, candidates=candidates)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [item["item_id"] for one in answer["lists"] for item in one["items"]] == expected["item_id"].tolist()
    assert answer["unknown_candidates"] == 1
    answer = ask(service, candidates=["nothing", "nobody"]).json()
    assert answer["unknown_candidates"] == 2
    assert [(one["items"], one["unknown_items"]) for one in answer["lists"]] == [([], 0), ([], 0), ([], 1), ([], 0)]


def test_numbers_are_ids_and_whole_ones_integers(service):
    answers = [
        requests.post(f"{service}/recommend", json={"histories": [history], "k": k}, timeout=60).json()
        for history, k in ((["50", "172"], 5), ([50, 172.0], 5.0))
    ]
    assert answers[0] == answers[1] and answers[0]["lists"][0]["unknown_items"] == 0


def test_the_host_must_be_its_own(service):
    """A foreign page may lead its own name to this address; the browser says the name."""
    port = service.rsplit(":", 1)[1]
    for host in ("127.0.0.1", "localhost", "[::1]", f"localhost:{port}"):
        assert requests.get(f"{service}/healthz", headers={"Host": host}, timeout=60).status_code == 200, host
    for host in ("foreign.example", f"foreign.example:{port}", "127.0.0.1.foreign.example", "192.0.2.7", "localhost."):
        for path in ("healthz", "", "docs", "openapi.json", "items", "nothing"):
            assert requests.get(f"{service}/{path}", headers={"Host": host}, timeout=60).status_code == 400, host
        assert requests.post(f"{service}/recommend", headers={"Host": host}, timeout=60).status_code == 400, host


def test_unknown_parameters_of_a_query(service):
    response = requests.get(f"{service}/items", params={"query": "17", "limits": 3}, timeout=60)
    assert response.status_code == 422 and "limits" in response.text


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_the_description_says_all_that_is_answered(service, tmp_path, examples):
    """All checks of schemathesis: statuses, types, headers, what must be accepted and what must be refused."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    command = [shutil.which("schemathesis", path=Path(sys.executable).parent), "run", f"{service}/openapi.json"]
    options = ["--checks=all", f"--max-examples={examples}", "--seed=1", "--no-color"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0 and "No issues found" in done.stdout, done.stdout + done.stderr


def test_a_batch_that_nobody_waits_for_ends_at_the_next_step(served_checkpoint):
    """Of 3200 steps few are taken, and the recommender is as it was."""
    from recbole_diffurec.inference.batcher import Batcher, Wanted
    from recbole_diffurec.inference.lists import ListOptions

    recommender, steps = Recommender.load(served_checkpoint), []

    def slow_step(*_):
        steps.append(1)
        time.sleep(0.01)

    async def abandon():
        batcher = Batcher(recommender, 256, 10**6, lambda size: None)
        worker = asyncio.create_task(batcher.run())
        large = asyncio.create_task(batcher.submit(Wanted(ListOptions(samples=100), 32), [["50"]] * 25))
        while not steps:
            await asyncio.sleep(0.01)
        large.cancel()
        await asyncio.wait_for(batcher.submit(Wanted(ListOptions(), 1), [["50"]]), 10)
        worker.cancel()
        batcher.close()

    handle = recommender.network.approximator.register_forward_pre_hook(slow_step)
    asyncio.run(abandon())
    assert len(steps) < 200
    handle.remove()
    assert len(recommender.recommend([["50"]], k=5)) == 5


def test_an_unannounced_body_is_limited_too(service):
    chunks = (b"x" * 100_000 for _ in range(20))
    response = requests.post(f"{service}/recommend", data=chunks, timeout=60)
    assert response.status_code == 413


def test_the_other_paths(served_checkpoint, service):
    health = requests.get(f"{service}/healthz", timeout=60).json()
    assert (health["status"], health["model"], health["sampling_steps"]) == ("ok", "DiffuRecSys", 2)
    found = requests.get(f"{service}/items", params={"query": "17", "limit": 3}, timeout=60).json()
    recommender = Recommender.load(served_checkpoint)
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
        (["--host=a\udcff"], "cannot listen on 'a\\udcff' port 8000 (no such address)"),
        (["--host=a..b"], "cannot listen on 'a..b' port 8000 (no such address)"),
        (["--path=x"], "unknown parameter 'path'"),
        (["--limits=x"], "unknown parameter 'limits'"),
        (["--allowed_hosts=shop.example:80"], "allowed_hosts has 'shop.example:80': give names"),
        (["--allowed_hosts=a,,b"], "allowed_hosts has '': give names"),
        (["--sampling_steps=99"], "sampling_steps"),
    ],
)
def test_mistakes(served_checkpoint, arguments, message, capsys):
    assert cli.main(["serve", str(served_checkpoint), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "where",
    [
        "uvicorn.config.Config.__init__",
        "uvicorn.server.Server.run",
        "asyncio.base_events.BaseEventLoop.run_until_complete",
        "uvicorn.server.Server.capture_signals",
        "uvicorn.server.Server.startup",
    ],
)
def test_it_is_stopped_while_it_begins(served_checkpoint, monkeypatch, capfd, where):
    """Neither uvicorn nor asyncio can be interrupted in all of their steps."""
    begin = pkgutil.resolve_name(where)

    def interrupted(*given, **more):
        signal.raise_signal(signal.SIGINT)
        return begin(*given, **more)

    monkeypatch.setattr(where, interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["serve", str(served_checkpoint), "--port=0"]) == 0
    said = capfd.readouterr()
    assert "serving " in said.out and "Traceback" not in said.err and "interrupted" not in said.err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_taken_port(served_checkpoint, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(served_checkpoint), f"--port={port}"]) == 2
    assert f"cannot listen on '127.0.0.1' port {port} (Address already in use)" in capsys.readouterr().err
