"""Recommendations over HTTP: ``/recommend``, ``/items``, ``/healthz``, ``/metrics``; ``/docs``, and a page at ``/``.

While the model scores one batch, further requests wait together and become the next batch, so that nobody waits for a
batch to fill and a busy service works on large ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, AsyncIterator, Union

import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel, Field, model_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_diffurec.errors import UserError
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.models.base import DiffusionRecommender
from recbole_diffurec.version import __version__

MAX_BODY = 1_000_000  # bytes
MAX_HISTORIES, MAX_HISTORY, MAX_K, MAX_SAMPLES = 256, 1000, 1000, 100
MAX_ID = 200  # characters of an item's id
MAX_LISTS = 2560  # histories times samples of a request
MAX_WAITING, MAX_CONNECTIONS = 10_000, 1000  # histories; requests
PAGE = Path(__file__).parent / "static" / "index.html"


ItemId = Annotated[str, Field(max_length=MAX_ID)]


class RecommendRequest(BaseModel):
    """Histories of item ids, the oldest item first, and what is wanted for each."""

    histories: list[Annotated[list[Union[ItemId, int]], Field(max_length=MAX_HISTORY, fail_fast=True)]] = Field(
        min_length=1, max_length=MAX_HISTORIES, examples=[[["50", "172", "1"]]]
    )
    k: int = Field(10, ge=1, le=MAX_K, description="length of the lists")
    exclude_seen: bool = Field(False, description="leave out the items of the history itself")
    sampling_steps: Union[int, None] = Field(None, ge=1, description="reverse steps; the service's own by default")
    samples: Union[int, None] = Field(None, ge=1, le=MAX_SAMPLES, description="reconstructions drawn for each history")
    diversity: float = Field(0.0, ge=0, le=1, description="spread the lists over the samples' own lists")

    @model_validator(mode="after")
    def _of_bounded_work(self) -> RecommendRequest:
        if len(self.histories) * (self.samples or 1) > MAX_LISTS:
            raise ValueError(f"histories times samples must not exceed {MAX_LISTS}")
        return self


class RankedItem(BaseModel):
    item_id: str
    score: float
    frequency: Union[float, None] = Field(None, description="share of the samples with the item in their own top k")


class RankedList(BaseModel):
    items: list[RankedItem]
    popular: bool = Field(description="the history holds no item that the model knows; these are the most popular ones")
    unknown_items: int = Field(description="items of the history that the model does not know; they were skipped")
    spread: Union[float, None] = Field(None, description="how far the samples lie from their mean, relative to it")


class RecommendResponse(BaseModel):
    lists: list[RankedList] = Field(description="in the order of the histories")


class Metrics:
    """What ``/metrics`` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"namespace": "recbole_diffurec", "registry": self.registry}
        self.responses = Counter("responses", "Responses by path and status", ["path", "status"], **common)
        self.seconds = Histogram("recommend_seconds", "Time to answer /recommend", **common)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
        self.batch = Histogram("batch_histories", "Histories scored at once", buckets=sizes, **common)


@dataclass(frozen=True)
class _Wanted:
    """What requests must agree on to be scored together."""

    k: int
    exclude_seen: bool
    sampling_steps: int | None
    samples: int | None
    diversity: float


@dataclass
class _Waiting:
    histories: list[list[str]]
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Busy(Exception):
    """More histories wait than the service is willing to keep."""


class Batcher:
    """Scores the requests that came in while the batch before was scored, together where they want the same.

    Parameters
    ----------
    recommender : the model.
    max_batch : histories, times their samples, that are scored at once.
    metrics : told the size of each batch.
    """

    def __init__(self, recommender: Recommender, max_batch: int, metrics: Metrics):
        self._recommender, self._max_batch, self._metrics = recommender, max_batch, metrics
        self._with_steps = functools.lru_cache(maxsize=64)(recommender.with_sampling_steps)
        self._waiting: dict[_Wanted, list[_Waiting]] = {}
        self._count = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def submit(self, wanted: _Wanted, histories: list[list[str]]) -> list[RankedList]:
        """The lists for ``histories``.

        Raises
        ------
        Busy
            Too many histories wait already.
        UserError
            The model cannot do what is wanted.
        """
        if self._count + len(histories) > MAX_WAITING:
            raise Busy
        request = _Waiting(histories)
        self._waiting.setdefault(wanted, []).append(request)
        self._count += len(histories)
        self._arrived.set()
        return await request.answer

    async def run(self) -> None:
        """Score batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            wanted, requests = self._next_batch()
            histories = [history for request in requests for history in request.histories]
            self._metrics.batch.observe(len(histories))
            try:
                lists = await loop.run_in_executor(self._thread, self._score, wanted, histories)
            except Exception as error:  # whatever it is, the service goes on and the requests get it
                for request in requests:
                    if not request.answer.done():
                        request.answer.set_exception(error)
                continue
            for request in requests:  # a cancelled one is done already
                mine, lists = lists[: len(request.histories)], lists[len(request.histories) :]
                if not request.answer.done():
                    request.answer.set_result(mine)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self) -> tuple[_Wanted, list[_Waiting]]:
        """The oldest group's first requests, as many as fit; a request alone may be larger than a batch."""
        wanted = next(iter(self._waiting))
        queue, size, taken = self._waiting.pop(wanted), 0, 0
        room = self._max_batch // (wanted.samples or 1)
        while taken < len(queue) and (not taken or size + len(queue[taken].histories) <= room):
            size += len(queue[taken].histories)
            taken += 1
        if queue[taken:]:
            self._waiting[wanted] = queue[taken:]  # behind the other groups
        self._count -= size
        if not self._waiting:
            self._arrived.clear()
        return wanted, queue[:taken]

    def _score(self, wanted: _Wanted, histories: list[list[str]]) -> list[RankedList]:
        recommender = self._with_steps(wanted.sampling_steps) if wanted.sampling_steps else self._recommender
        table = recommender.recommend(
            histories, wanted.k, wanted.exclude_seen, samples=wanted.samples, diversity=wanted.diversity
        )
        ends = np.searchsorted(table["user_id"].to_numpy(dtype=int), np.arange(len(histories)), side="right")
        frequencies = table["frequency"].tolist() if "frequency" in table else [None] * len(table)
        spreads = table["spread"].tolist() if "spread" in table else [None] * len(table)
        popular = table["popular"].tolist()
        ranked = [
            RankedItem.model_construct(item_id=item, score=score, frequency=frequency)
            for item, score, frequency in zip(table["item_id"].tolist(), table["score"].tolist(), frequencies)
        ]
        lists = []
        for history, start, end in zip(histories, (0, *ends), ends):
            lists.append(
                RankedList.model_construct(
                    items=ranked[start:end],
                    popular=popular[start] if end > start else False,
                    unknown_items=recommender.unknown([history]),
                    spread=spreads[start] if end > start else None,
                )
            )
        return lists


class _Guard:
    """Refuses bodies above ``MAX_BODY``, announced or not, and counts responses."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        too_large = JSONResponse({"detail": f"the request is larger than {MAX_BODY:,} bytes: send less"}, 413)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > MAX_BODY:
            return await too_large(scope, receive, counted_send)
        body = bytearray()
        more = True
        while more:  # bodies are small, so they are read before anything else is done
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY:
                return await too_large(scope, receive, counted_send)
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        try:
            await self._app(scope, replay, counted_send)
        except Exception:
            self._metrics.responses.labels(path, 500).inc()  # which a layer outside of this one sends
            raise


def create_app(recommender: Recommender, max_batch: int = 256) -> FastAPI:
    """The service as an ASGI application.

    Parameters
    ----------
    recommender : the model.
    max_batch : histories scored at once.
    """
    metrics = Metrics()
    ids = recommender.items[1:].astype(str)
    by_popularity = ids[np.argsort(-recommender.popularity[1:], kind="stable")]
    page = PAGE.read_text(encoding="utf-8")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(recommender, max_batch, metrics)
        worker = asyncio.create_task(app.state.batcher.run())
        yield
        worker.cancel()
        app.state.batcher.close()

    app = FastAPI(title="recbole_diffurec", version=__version__, lifespan=lifespan)
    app.add_middleware(_Guard, metrics=metrics, paths={"/", "/recommend", "/items", "/healthz", "/metrics"})

    @app.exception_handler(UserError)
    async def refuse(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input, which may be large, or hold what JSON cannot.
        return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"]} for e in error.errors()[:10]]}, 422)

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return JSONResponse({"detail": "too many requests wait: try again"}, 503, headers={"Retry-After": "1"})

    @app.post("/recommend", response_model_exclude_none=True)
    async def recommend(request: RecommendRequest) -> RecommendResponse:
        """The k best items for each history."""
        start = time.perf_counter()
        wanted = _Wanted(request.k, request.exclude_seen, request.sampling_steps, request.samples, request.diversity)
        histories = [[str(item) for item in history] for history in request.histories]
        lists = await app.state.batcher.submit(wanted, histories)
        metrics.seconds.observe(time.perf_counter() - start)
        return RecommendResponse.model_construct(lists=lists)

    @app.get("/items")
    def items(
        query: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> list[str]:
        """Items whose id contains ``query``, the most popular first."""
        return by_popularity[np.char.find(by_popularity, query) >= 0][:limit].tolist()

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """That the service answers, and with what."""
        network, config = recommender.network, recommender.config
        diffusion = isinstance(network, DiffusionRecommender)
        return {
            "status": "ok",
            "model": config["model"],
            "dataset": config["dataset"],
            "items": len(ids),
            "max_length": config["MAX_ITEM_LIST_LENGTH"],
            "diffusion_steps": network.process.n_steps if diffusion else None,
            "sampling_steps": len(network.process.sampled_steps) if diffusion else None,
            "version": __version__,
        }

    @app.get("/metrics")
    async def metrics_text() -> PlainTextResponse:
        """Counters in Prometheus' text format."""
        return PlainTextResponse(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    return app


def serve(
    checkpoint_file: str | Path, /, host: str = "127.0.0.1", port: int = 8000, max_batch: int = 256, **parameters: Any
) -> None:
    """Serve a checkpoint until SIGINT or SIGTERM.

    Parameters
    ----------
    checkpoint_file : a ``.pth`` file of ``run``, of a sequential model.
    host, port : to listen on; port 0 takes a free one.
    max_batch : histories scored at once.
    parameters : for inference, such as ``sampling_steps=4``.

    Raises
    ------
    UserError
        The checkpoint cannot be used, or the address cannot be listened on.
    """
    if max_batch < 1:
        raise UserError(f"max_batch must be at least 1, got {max_batch}")
    if not 0 <= port <= 65535:
        raise UserError(f"port must be from 0 to 65535, got {port}")
    recommender = Recommender.load(checkpoint_file, **parameters)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        # Python adds the address to some of these texts, which the sentence has already. Names that lead nowhere have
        # negative numbers, or none.
        number = getattr(error, "errno", None) or -1
        reason = os.strerror(number) if number > 0 else "no such address"
        raise UserError(f"cannot listen on '{host}' port {port} ({reason}): give another --host or --port") from None
    with listener:
        # asyncio does so for listeners of its own; without it, an answer's second part waits 40 ms for the first one's
        # acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = f"[{host}]" if ":" in host else host
        print(f"serving     http://{address}:{listener.getsockname()[1]}/ (API: /docs, Ctrl-C stops)", flush=True)
        app = create_app(recommender, max_batch)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", limit_concurrency=MAX_CONNECTIONS))
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn once it has stopped
            server.run(sockets=[listener])
