"""Limits for connections, the hosts that a service goes by, and a server that keeps both.

uvicorn ends a connection that is silent after an answer. One that is silent from its start, sends a head a byte at a
time or never takes its answer is ended here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import uvicorn
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from recbole_diffurec.errors import UserError
from recbole_diffurec.inference.limits import Limits, Refusal

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_NAME = 253  # characters of a host's name


class Connection(H11Protocol):
    """A connection that is ended when it does not get on.

    Attributes
    ----------
    limits : Limits
        What it is allowed.
    idle : dict
        Connections without a request under way, in the order in which they became so; a dict for want of ordered sets.
    """

    limits: Limits
    idle: dict[Connection, None]
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request; where there are too many connections, the one that has waited longest makes room."""
        super().connection_made(transport)
        self._follow()
        if len(self.connections) > self.limits.connections and self.idle:
            longest = next(iter(self.idle))
            del self.idle[longest]
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """A request may have begun."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have come already."""
        super().on_response_complete()
        self._follow()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the form of all refusals, and end the connection."""
        refusal = Refusal(400, "this is no request of HTTP/1.1: send one").response()
        lines = [b"%s: %s\r\n" % header for header in (*refusal.raw_headers, (b"connection", b"close"))]
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%s\r\n%s" % (b"".join(lines), refusal.body))
        self.transport.close()

    def pause_writing(self) -> None:
        """The client is slow to take a large answer."""
        super().pause_writing()
        if self._end is None:
            self._end_after(self.limits.send_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        self.idle.pop(self, None)
        self._end_after(None)
        super().connection_lost(exc)

    def _follow(self) -> None:
        """Note whether a request is under way: if so, others watch the time."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self in self.idle:
                del self.idle[self]
                self._end_after(None)
        elif self not in self.idle:
            self.idle[self] = None
            self._end_after(self.limits.idle_seconds)

    def _end_after(self, seconds: float | None) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


class OwnHosts:
    """Refuses requests for a host that the service does not go by, in the form of all refusals.

    Parameters
    ----------
    app : ASGIApp
        Gets the others.
    allowed : sequence of str
        As ``hosts`` gives them.
    count : callable
        Told the path and the status of each refusal.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], count: Callable[[str, int], None]):
        self._app, self._allowed, self._count = app, list(allowed), count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's application."""
        own = False

        async def go_on(*asgi: Any) -> None:
            nonlocal own
            own = True
            await self._app(*asgi)

        async def answer(message: Message) -> None:
            if own:  # else it is Starlette's refusal, which is text
                await send(message)

        await TrustedHostMiddleware(go_on, self._allowed, www_redirect=False)(scope, receive, answer)
        if not own:
            self._count(scope["path"], 400)
            asked = Headers(scope=scope).get("host", "")[:MAX_NAME]
            reason = f"this service is not '{asked}': ask for one of its own names, or start it with --allowed_hosts"
            await Refusal(400, reason).response()(scope, receive, send)


def server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """A server for ``app`` whose connections keep ``limits``."""
    protocol = type("LimitedConnection", (Connection,), {"limits": limits, "idle": {}})
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",  # there are none, and they would leave the limits
            log_level="warning",
            backlog=limits.connections,  # accepted at a time
            timeout_graceful_shutdown=limits.stop_seconds,
        )
    )


def run(app: ASGIApp, limits: Limits, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM.

    Parameters
    ----------
    app : ASGIApp
        What answers.
    limits : Limits
        Of its connections.
    listener : socket.socket
        See ``listen``.
    """
    servers: list[uvicorn.Server] = []
    asked = threading.Event()

    def stop(*_: Any) -> None:
        """For SIGINT while uvicorn and asyncio prepare and cannot be interrupted; later it is theirs."""
        asked.set()
        for beginning in servers:
            beginning.should_exit = True

    with _on_interrupt(stop):
        servers.append(server(app, limits))
        if not asked.is_set():
            servers[0].run(sockets=[listener])


@contextlib.contextmanager
def _on_interrupt(handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises
    ------
    UserError
        It cannot.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError, TypeError) as error:  # the last for names that no text can have
        # Python adds the address to some of these texts, which the sentence has already. Names that lead nowhere have
        # negative numbers, or none.
        number = getattr(error, "errno", None) or -1
        reason = os.strerror(number) if number > 0 else "no such address"
        raise UserError(f"cannot listen on '{host}' port {port} ({reason}): give another --host or --port") from None
    # asyncio does so for listeners of its own; without it, an answer's second part waits 40 ms for the first one's
    # acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def hosts(listening_on: str, allowed: Sequence[str] = ()) -> list[str]:
    """The names that requests may be for, as ``TrustedHostMiddleware`` wants them.

    A page of a foreign site may lead its own name to this machine's address; a browser then takes the service for a
    part of that site, and only the name in the request tells.

    Parameters
    ----------
    listening_on : str
        The address that the service listens on.
    allowed : sequence of str
        Further names and addresses: ``shop.example``, ``*.shop.example``, ``*`` for any.

    Raises
    ------
    UserError
        One of ``allowed`` is neither.
    """
    own = {_as_in_url(listening_on) or listening_on}
    if listening_on in ("", "0.0.0.0", "::"):
        addresses = [address for each in psutil.net_if_addrs().values() for address in each]
        internet = (socket.AF_INET, socket.AF_INET6)
        mine = [address.address.partition("%")[0] for address in addresses if address.family in internet]
        own = {*LOOPBACK, *filter(None, map(_as_in_url, (socket.gethostname(), *mine)))}
    elif _as_in_url(listening_on) in LOOPBACK or _is_loopback(listening_on):
        own |= {*LOOPBACK}
    for name in allowed:
        form = name if name == "*" else _as_in_url(name.removeprefix("*."))
        if form is None:
            raise UserError(
                f"allowed_hosts has '{name}': give names or addresses without a port, such as shop.example, "
                f"*.shop.example, 192.0.2.7 or ::1"
            )
        own.add(f"*.{form}" if name.startswith("*.") else form)
    return sorted(own)


def _as_in_url(host: str) -> str | None:
    """A name, or an address as it stands in a URL; none for what is neither."""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return host.lower() if re.fullmatch(r"[\w.-]+", host, re.ASCII) else None
    return f"[{address}]" if address.version == 6 else str(address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
