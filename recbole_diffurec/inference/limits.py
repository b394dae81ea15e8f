"""What keeps a service answering whatever its clients do: limits of time, memory and number for requests.

``connections`` has those for connections. uvicorn limits the time between two requests of a connection, and how long it
waits for clients when it stops; the rest is in these two files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PART = 65_536  # bytes of an answer that are sent at once: as many as uvicorn keeps before it waits for the client
WATCHERS = frozenset({"/healthz", "/metrics"})  # answered however many requests are under way


@dataclass(frozen=True)
class Limits:
    """What a service allows its clients.

    Parameters
    ----------
    idle_seconds : float
        For a connection to send the head of a request, and to take the rest of an answer.
    body_seconds : float
        For a request to send its body.
    send_seconds : float
        For a client to take an answer of more than ``PART`` bytes.
    stop_seconds : int
        For requests under way to end once the service is told to stop.
    body_bytes : int
        Of one request.
    held_bytes : int
        Of the bodies and answers of all requests under way.
    requests : int
        Under way at the same time; those for ``WATCHERS`` do not count.
    connections : int
        Open at the same time.
    """

    idle_seconds: float = 10
    body_seconds: float = 20
    send_seconds: float = 60
    stop_seconds: int = 5
    body_bytes: int = 1_000_000
    held_bytes: int = 100_000_000
    requests: int = 500
    connections: int = 1000

    @classmethod
    def of_process(cls) -> Limits:
        """The limits, lowered to what the process may open: each connection is a file, and there are other files."""
        try:
            import resource
        except ImportError:  # not on POSIX
            return cls()
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # As many again may be accepted before room is made for them.
        connections = cls.connections if files < 0 else min(cls.connections, max(files // 3, 16))
        return cls(connections=connections, requests=min(cls.requests, connections // 2))


class Refusal(Exception):
    """A request that is not served.

    Parameters
    ----------
    status : int
        Of the answer.
    detail : str
        Why, and what to do.
    retry_after : int
        Seconds after which the same request may be served; told with status 503.
    """

    def __init__(self, status: int, detail: str, retry_after: int = 1):
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    def response(self) -> JSONResponse:
        """What the client is told."""
        headers = {503: {"Retry-After": str(self.retry_after)}, 408: {"Connection": "close"}}
        return JSONResponse({"detail": self.detail}, self.status, headers.get(self.status))


class Share:
    """What one request holds of the bytes that all requests under way may hold.

    Parameters
    ----------
    all_held : list of int
        The bytes that all of them hold, one number that the shares change.
    limit : int
        How many these may be.
    """

    def __init__(self, all_held: list[int], limit: int):
        self._all_held, self._limit, self._own = all_held, limit, 0

    def take(self, size: int) -> None:
        """Hold so many bytes more.

        Raises
        ------
        Refusal
            All requests together would hold too many.
        """
        if self._all_held[0] + size > self._limit:
            raise Refusal(503, "the requests under way fill the memory that they may have: try again")
        self._all_held[0] += size
        self._own += size

    def give_back(self) -> None:
        """Hold nothing."""
        self._all_held[0] -= self._own
        self._own = 0


class _Answer:
    """What is sent to one client: counted, and in parts that uvicorn keeps one of."""

    def __init__(self, send: Send, count: Callable[[int], None]):
        self._send, self._count, self.started = send, count, False

    async def send(self, message: Message) -> None:
        """ASGI's ``send``."""
        if message["type"] == "http.response.start":
            self.started = True
            self._count(message["status"])
        body, sent = message.get("body", b""), 0
        while len(body) - sent > PART:
            await self._send({"type": "http.response.body", "body": body[sent : sent + PART], "more_body": True})
            sent += PART
        await self._send({**message, "body": body[sent:]} if sent else message)


class Guard:
    """Reads bodies within the limits, stops the work for a client that has gone, and counts answers.

    Parameters
    ----------
    app : ASGIApp
        ASGI application Finds the request's ``Share`` in its scope, as ``share``.
    limits : Limits
        What clients are allowed.
    count : callable
        Told the path and the status of each answer.
    """

    def __init__(self, app: ASGIApp, limits: Limits, count: Callable[[str, int], None]):
        self._app, self._limits, self._count = app, limits, count
        self._all_held, self._under_way = [0], 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's application."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path: str = scope["path"]
        answer = _Answer(send, lambda status: self._count(path, status))
        if path in WATCHERS:  # whose bodies nobody waits for
            return await self._app(scope, receive, answer.send)
        share = Share(self._all_held, self._limits.held_bytes)
        self._under_way += 1
        try:
            if self._under_way > self._limits.requests:
                raise Refusal(503, "too many requests are under way: try again")
            body = await self._body(scope, receive, share)
            if body is not None:
                await self._work({**scope, "share": share}, body, receive, answer)
        except Refusal as refusal:
            await refusal.response()(scope, receive, answer.send)
        except asyncio.CancelledError:  # by uvicorn, when the time to stop is over; nobody waits for this task
            if not answer.started:
                await Refusal(503, "the service stops: try again").response()(scope, receive, answer.send)
        except Exception:
            self._count(path, 500)  # which a layer outside of this one sends
            raise
        finally:
            self._under_way -= 1
            share.give_back()

    async def _body(self, scope: Scope, receive: Receive, share: Share) -> bytes | None:
        """The whole body; none where the client has gone."""
        most, seconds = self._limits.body_bytes, self._limits.body_seconds
        too_large = Refusal(413, f"the request is larger than {most:,} bytes: send less")
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > most:
            raise too_large
        body, more = bytearray(), True
        try:
            with anyio.fail_after(seconds):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    part = message.get("body", b"")
                    if len(body) + len(part) > most:
                        raise too_large
                    share.take(len(part))
                    body += part
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refusal(408, f"the request was not complete after {seconds:g} seconds: send it faster") from None
        return bytes(body)

    async def _work(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the application until it has answered, or its client has gone."""
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        failure: Exception | None = None

        async def replay() -> Message:
            if not whole:
                await anyio.sleep_forever()  # the group ends with the client
            return whole.pop()

        async with anyio.create_task_group() as group:

            async def stop_with_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(stop_with_client)
            try:
                await self._app(scope, replay, answer.send)
            except Exception as error:  # raised here, the group would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
