"""Requests of any shape to the service: an answer of its description, or a refusal; never a failure."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from recbole_diffurec import Recommender
from recbole_diffurec.inference.service import create_app

ALLOWED = {200, 400, 404, 405, 413, 415, 422}
VALUES = [
    None, True, False, 0, 1, -1, 2, 2.0, 2.5, 10**9, 10**30, -(10**20), math.nan, math.inf, "", "1", "i1", "é 日本",
    "\ud800", "\x00", "x" * 300, [], [[]], [[[]]], {}, {"a": 1}, [None], ["50"], [["50", "172"]], [[50, 172.0, "x"]],
    [["50"] * 40], "__proto__", "title", 0.5, 1e308, -0.0,
]  # fmt: skip
NAMES = [
    "histories",
    "k",
    "exclude_seen",
    "candidates",
    "samples",
    "diversity",
    "sampling_steps",
    "fields",
    "x",
    "",
    "é",
]
SOUND: dict[str, list[Any]] = {
    "histories": [[["50", "172", "1"]], [["50"], []], [[50, 172]], [["unknown"]], [["50"] * 1000], [["50"]] * 256],
    "k": [1, 5, 10, 1000],
    "exclude_seen": [True, False],
    "candidates": [["1", "2", "3"], ["x"], None, [1, 2]],
    "samples": [None, 1, 3, 10, 100],
    "diversity": [0, 0.0, 0.5, 1],
    "sampling_steps": [None, 1, 2, 3],
}
PATHS = [
    "/recommend",
    "/items",
    "/search",
    "/healthz",
    "/metrics",
    "/",
    "/docs",
    "/openapi.json",
    "/x",
    "/recommend/",
    "//",
]
HEADERS = [
    {"content-type": "application/json"}, {}, {"content-type": "text/plain"},
    {"content-type": "application/json; charset=x"}, {"content-type": "x/y; charset=\\"}, {"accept": "x"},
    {"expect": "100-continue"}, {"content-encoding": "gzip"},
]  # fmt: skip


@pytest.fixture(scope="module")
def client(served_checkpoint: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Recommender.load(served_checkpoint)), raise_server_exceptions=False) as client:
        yield client


def body(draw: random.Random) -> bytes:
    """JSON that is sound but for some of its parts, or any bytes."""
    asked: Any = {"histories": draw.choice(SOUND["histories"])}
    for name in draw.sample(NAMES, draw.choice([0, 1, 1, 1, 2, 3])):
        asked[name] = draw.choice(SOUND[name] if name in SOUND and draw.random() < 0.8 else VALUES)
    if draw.random() < 0.1:
        asked = draw.choice(VALUES)
    text = json.dumps(asked).encode()
    if draw.random() < 0.1:
        place = draw.randrange(len(text) + 1)
        text = (
            text[:place] + draw.choice([b"\x00", b"\xff", b"[" * 5000, b"{", b'"', b",", b"NaN", b"\\u"]) + text[place:]
        )
    return text[: draw.randrange(len(text) + 1)] if draw.random() < 0.05 else text


def request(draw: random.Random, client: TestClient) -> tuple[str, Any]:
    """What was asked, and the answer."""
    if draw.random() < 0.7:
        content, headers = body(draw), draw.choice([HEADERS[0], HEADERS[0], HEADERS[0], *HEADERS])
        return f"{headers} {content[:300]!r}", client.post("/recommend", content=content, headers=headers)
    path, method = draw.choice(PATHS), draw.choice(["GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"])
    values = [str(value) for value in VALUES if value != "\ud800"]
    names = draw.choices(["query", "limit", "x", ""], k=draw.choice([0, 1, 2, 3]))
    query = [(name, draw.choice([*values, "5", "5", "star"])) for name in names]
    return f"{method} {path} {query}", client.request(method, path, params=query)


def try_requests(client: TestClient, seeds: range) -> Counter[int]:
    outcomes: Counter[int] = Counter()
    for seed in seeds:
        asked, answer = request(random.Random(seed), client)
        assert answer.status_code in ALLOWED, f"seed {seed}: {answer.status_code} for {asked}"
        if "Traceback" in answer.text or (
            answer.status_code >= 400 and answer.content and "detail" not in answer.json()
        ):
            pytest.fail(f"seed {seed}: {answer.text[:300]} for {asked}")
        if answer.status_code == 200 and "lists" in answer.text[:10]:
            json.loads(answer.text, parse_constant=pytest.fail)  # NaN is no JSON
        outcomes[answer.status_code] += 1
    return outcomes


def test_requests_of_any_shape(client: TestClient) -> None:
    outcomes = try_requests(client, range(300))
    assert outcomes[200] > 40 and outcomes[422] > 40, "both are tried"


@pytest.mark.slow
def test_many_requests_of_any_shape(client: TestClient) -> None:
    print(try_requests(client, range(1000, 6000)))
