"""Recommendations over HTTP: ``/recommend``, ``/next``, ``/items``, ``/search``, ``/healthz``, ``/metrics``, a page."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from recbole_diffurec.errors import UserError
from recbole_diffurec.inference import connections, schema
from recbole_diffurec.inference.answers import empty_list
from recbole_diffurec.inference.batcher import Lanes, Wanted
from recbole_diffurec.inference.items import TITLE
from recbole_diffurec.inference.limits import Guard, Limits, Refusal, Share
from recbole_diffurec.inference.lists import ListOptions
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.models.base import DiffusionRecommender, ListSampler
from recbole_diffurec.version import __version__

ITEM_BYTES = 100  # of one place of a list in an answer, in round numbers
PATHS = frozenset({"/", "/recommend", "/next", "/items", "/search", "/healthz", "/metrics"})
PAGE = Path(__file__).parent / "static" / "index.html"


class Metrics:
    """What ``/metrics`` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"namespace": "recbole_diffurec", "registry": self.registry}
        self.responses = Counter("responses", "Responses by path and status", ["path", "status"], **common)
        paths = ("recommend", "next")
        self.seconds = {path: Histogram(f"{path}_seconds", f"Time to answer /{path}", **common) for path in paths}
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
        self.batch = Histogram("batch_histories", "Histories scored at once", buckets=sizes, **common)

    def count(self, path: str, status: int) -> None:
        """Count an answer; paths that the service does not have are one."""
        self.responses.labels(path if path in PATHS else "other", status).inc()


def create_app(
    recommender: Recommender, max_batch: int = 256, allowed_hosts: Sequence[str] = ("*",), limits: Limits | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Parameters
    ----------
    recommender : Recommender
        The model.
    max_batch : int
        Histories, times their samples, that are scored at once.
    allowed_hosts : sequence of str
        What requests may name as their host, as Starlette's ``TrustedHostMiddleware`` has it; by default anything.
    limits : Limits
        What clients are allowed.
    """
    metrics = Metrics()
    largest = schema.MAX_HISTORIES * schema.FEW_SAMPLES * schema.most_steps(recommender) * (_slots(recommender) or 1)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.lanes = Lanes(recommender, max_batch, largest, metrics.batch.observe)
        worker = asyncio.create_task(app.state.lanes.run())
        yield
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker

    # ReDoc asks another host for a picture even so.
    options: dict[str, Any] = {"redoc_url": None, "redirect_slashes": False}
    app = FastAPIOffline(title="recbole_diffurec", version=__version__, lifespan=lifespan, **options)
    app.add_middleware(Guard, limits=limits or Limits(), count=metrics.count)
    app.add_middleware(connections.OwnHosts, allowed=allowed_hosts, count=metrics.count)
    _add_refusals(app)
    lists = ListsInTurn(app, recommender, metrics)
    _add_recommend(app, recommender, lists)
    _add_next(app, recommender, lists)
    _add_views(app, recommender, metrics)
    return app


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def refuse(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        if isinstance(error.body, bytes):  # which was not read, as its header says that it is something else
            return Refusal(415, "the body must be JSON: send the header 'Content-Type: application/json'").response()
        # Without the input, which may be large, or hold what JSON cannot.
        return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"]} for e in error.errors()[:10]]}, 422)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return error.response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:  # which is raised again, for the log
        return Refusal(500, "the service failed at this request: its log says why").response()


def _slots(recommender: Recommender) -> int | None:
    """How many items the model draws together at most; None for one of the next item alone."""
    return recommender.network.n_slots if isinstance(recommender.network, ListSampler) else None


class ListsInTurn:
    """What the paths that give lists share: requests understood, and their lists once it is their turn.

    Parameters
    ----------
    app : FastAPI
        Whose lanes score the histories.
    recommender : Recommender
        The model.
    metrics : Metrics
        Told how long answers took.
    """

    def __init__(self, app: FastAPI, recommender: Recommender, metrics: Metrics):
        self._app, self._recommender, self._metrics, network = app, recommender, metrics, recommender.network
        self._own_steps = network.sampling_steps if isinstance(network, DiffusionRecommender) else 1

    async def __call__(self, name: str, wanted: dict[str, Any], request: Request, slots: int | None = None) -> Response:
        """The answer, with the lists under ``name``.

        Parameters
        ----------
        name : str
            Of them in the answer.
        wanted : dict
            The fields of the request, but for ``next``.
        request : Request
            Whose share of the memory the answer takes.
        slots : int, optional
            Items that are drawn together; lists are of single items without.
        """
        start, recommender = time.perf_counter(), self._recommender
        histories = [[str(item) for item in history] for history in wanted.pop("histories")]
        steps = wanted.pop("sampling_steps", None) or self._own_steps
        fields = tuple(wanted.pop("fields", None) or ())
        candidates, end = wanted.pop("candidates"), b"]}"
        if candidates is not None:
            wanted["candidates"] = tuple(sorted(filter(recommender.knows, set(map(str, candidates)))))
            end = b'],"unknown_candidates":%d}' % recommender.unknown([candidates])
        places = min(wanted["k"], len(recommender.items)) if slots is None else wanted["k"] * slots
        share: Share = request.scope["share"]
        share.take(len(histories) * places * ITEM_BYTES * (1 + len(fields)))
        if candidates is None or wanted["candidates"]:
            asked = Wanted(ListOptions(**wanted), steps, fields, slots)
            lists = await self._app.state.lanes.submit(asked, histories)
        else:
            lists = [empty_list(recommender, history, slots) for history in histories]
        self._metrics.seconds["recommend" if slots is None else "next"].observe(time.perf_counter() - start)
        return Response(b'{"%s":[' % name.encode() + b",".join(lists) + end, media_type="application/json")


def _add_recommend(app: FastAPI, recommender: Recommender, lists: ListsInTurn) -> None:
    form = schema.request_for(recommender)

    # FastAPI evaluates annotations, and this one only exists here: those of this file are no strings.
    @app.post("/recommend", response_model=schema.RecommendResponse, responses=schema.answers(408, 413, 415, 422, 503))
    async def recommend(asked: form, request: Request) -> Response:  # type: ignore[valid-type]
        """The k best items for each history."""
        return await lists("lists", asked.model_dump(), request)  # type: ignore[attr-defined]


def _add_next(app: FastAPI, recommender: Recommender, lists: ListsInTurn) -> None:
    slots = _slots(recommender)
    if slots is None:

        @app.post("/next", include_in_schema=False)
        def refuse() -> None:
            raise UserError(
                f"model '{recommender.config['model']}' knows the next item alone and draws no lists of several: ask "
                f"/recommend"
            )

        return
    form = schema.next_request_for(slots, recommender)

    @app.post("/next", response_model=schema.NextResponse, responses=schema.answers(408, 413, 415, 422, 503))
    async def next_lists(asked: form, request: Request) -> Response:  # type: ignore[valid-type]
        """Lists of the next several items after each history, drawn together."""
        wanted = asked.model_dump()  # type: ignore[attr-defined]
        wanted["k"] = min(wanted["k"], wanted["samples"])  # no more of them are different
        return await lists("histories", wanted, request, wanted.pop("next"))


def _add_views(app: FastAPI, recommender: Recommender, metrics: Metrics) -> None:
    network, config = recommender.network, recommender.config
    ids = recommender.items[1:].astype(str)
    order = np.argsort(-recommender.popularity[1:], kind="stable")
    by_popularity, about_items = ids[order], recommender.about_items
    diffusion = isinstance(network, DiffusionRecommender)
    health = schema.Health(
        status="ok",
        model=config["model"],
        dataset=config["dataset"],
        items=len(ids),
        max_length=config["MAX_ITEM_LIST_LENGTH"],
        diffusion_steps=network.n_steps if diffusion else None,
        sampling_steps=network.sampling_steps if diffusion else None,
        max_sampling_steps=schema.most_steps(recommender),
        samples="samples" in schema.request_for(recommender).model_fields,
        next=_slots(recommender),
        fields=about_items.names,
        version=__version__,
    )
    page = PAGE.read_text(encoding="utf-8")

    @app.get("/items", responses=schema.answers(408, 413, 422, 503))
    def items(asked: Annotated[schema.ItemsQuery, Query()]) -> list[str]:
        """Items whose id contains ``query``, the most popular first."""
        return by_popularity[np.char.find(by_popularity, asked.query) >= 0][: asked.limit].tolist()

    @app.get("/search", responses=schema.answers(408, 413, 422, 503))
    def search(asked: Annotated[schema.SearchQuery, Query()]) -> list[schema.FoundItem]:
        """Items whose id or title contains ``query``: the one with this id first, then the most popular."""
        found = by_popularity[about_items.found(asked.query)[1:][order]][: asked.limit].tolist()
        if recommender.knows(asked.query):
            found = [asked.query, *(item for item in found if item != asked.query)][: asked.limit]
        titled = [TITLE] if TITLE in about_items.names else []
        titles = [row.get(TITLE) for row in about_items.rows(titled, found)]
        return [schema.FoundItem(item_id=item, title=title) for item, title in zip(found, titles)]

    @app.get("/healthz", responses=schema.answers())
    async def healthz() -> schema.Health:
        """That the service answers, and with what."""
        return health

    # Of a class without a type of its own: refusals are JSON here too.
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses={**text, **schema.answers()})
    async def metrics_text() -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)


def serve(
    checkpoint_file: str | Path,
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch: int = 256,
    allowed_hosts: Sequence[str] = (),
    **parameters: Any,
) -> None:
    """Serve a checkpoint until SIGINT or SIGTERM.

    Parameters
    ----------
    checkpoint_file : str or Path
        A ``.pth`` file of ``run``, of a sequential model.
    host : str
        The address to listen on.
    port : int
        The port there; 0 takes a free one.
    max_batch : int
        Histories, times their samples, that are scored at once.
    allowed_hosts : sequence of str
        Names by which the service is reached, beside its own address; ``*`` for any.
    parameters : object
        For inference, such as ``sampling_steps=4``.

    Raises
    ------
    UserError
        The checkpoint cannot be used, or the address cannot be listened on.
    """
    if max_batch < 1:
        raise UserError(f"max_batch must be at least 1, got {max_batch}")
    if not 0 <= port <= 65535:
        raise UserError(f"port must be from 0 to 65535, got {port}")
    hosts, limits = connections.hosts(host, allowed_hosts), Limits.of_process()
    app = create_app(Recommender.load(checkpoint_file, **parameters), max_batch, hosts, limits)
    with connections.listen(host, port) as listener:
        address = f"[{host}]" if ":" in host else host
        print(f"serving     http://{address}:{listener.getsockname()[1]}/ (API: /docs, Ctrl-C stops)", flush=True)
        connections.run(app, limits, listener)
