"""The limits of a service, with a client that keeps none: a server in a thread, asked through bare sockets."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the service needs fastapi")

from recbole_diffurec import UserError
from recbole_diffurec.inference import connections
from recbole_diffurec.inference.limits import Guard, Limits

POST = b"POST /work HTTP/1.1\r\nHost: x\r\n"


class App:
    """Answers with so many bytes as ``/bytes/N`` says; on ``/wait`` only when it is told, or never."""

    def __init__(self):
        self.cancelled, self.running = 0, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return
        size = 2
        if scope["path"].startswith("/bytes/"):
            size = int(scope["path"].removeprefix("/bytes/"))
        if scope["path"] == "/work":
            assert (await receive())["more_body"] is False
        if scope["path"] == "/wait":
            self.running += 1
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})


class Running:
    """A server in a thread."""

    def __init__(self, **limits):
        limits = Limits(**{"stop_seconds": 1, **limits})
        self.app, self.counted, self.clients = App(), [], []
        guard = Guard(self.app, limits, lambda path, status: self.counted.append((path, status)))
        self.listener = connections.listen("127.0.0.1", 0)
        self.server = connections.server(guard, limits)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()
        eventually(lambda: self.server.started)

    def connect(self, data: bytes = b"", **options) -> socket.socket:
        """A connection on which ``data`` was sent."""
        client = socket.socket()
        self.clients.append(client)  # which would be closed if it were forgotten
        for name, value in options.items():
            client.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        client.settimeout(10)
        client.connect(self.listener.getsockname())
        client.sendall(data)
        return client

    def get(self, path: str) -> bytes:
        """The answer to a request whose connection is closed then."""
        return read(self.connect(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()))

    def stop(self) -> float:
        """Seconds that it takes to stop."""
        started = time.perf_counter()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        return time.perf_counter() - started


@pytest.fixture
def running():
    """Makes servers, and stops them."""
    with contextlib.ExitStack() as stack:

        def start(**limits):
            server = Running(**limits)
            stack.callback(server.stop)
            return server

        yield start


def read(client: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            data += part
    return data


def eventually(condition, seconds=10):
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end
        time.sleep(0.01)


def trickle(client: socket.socket, seconds=10):
    """Send a byte at a time until the connection ends; how long that took."""
    started = time.perf_counter()
    client.settimeout(0.05)
    while time.perf_counter() - started < seconds:
        try:
            client.sendall(b"x")
            if not client.recv(1):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.perf_counter() - started


@pytest.mark.parametrize("sent", [b"", b"GET /", POST + b"X-Slow: "])
def test_connections_without_a_request_end(running, sent):
    server = running(idle_seconds=0.5)
    assert read(server.connect(sent)) == b""
    assert 0.3 < trickle(server.connect(sent)) < 5


def test_a_connection_that_begins_another_request_ends_too(running):
    server = running(idle_seconds=0.5)
    client = server.connect(b"GET /bytes/2 HTTP/1.1\r\nHost: x\r\n\r\nGET /by")
    assert read(client).endswith(b"\r\n\r\nxx")


def test_a_request_under_way_is_no_idle_connection(running):
    server = running(idle_seconds=0.3)
    client = server.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    client.settimeout(1)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_the_connection_that_waits_longest_makes_room(running):
    server = running(connections=4)
    clients = []
    for count in range(1, 8):
        clients.append(server.connect())
        eventually(lambda count=count: len(server.server.server_state.connections) == min(count, 4))
    assert server.get("/bytes/2").endswith(b"xx")
    assert [read(client) for client in clients[:3]] == [b""] * 3
    clients[-1].settimeout(0.1)
    with pytest.raises(TimeoutError):
        clients[-1].recv(1)


def test_slow_bodies_end(running):
    server = running(body_seconds=0.5)
    clients = [server.connect(POST + b"Content-Length: 1000\r\n\r\n") for _ in range(20)]
    assert 0.3 < trickle(clients[0]) < 5
    answers = [read(client) for client in clients[1:]]
    assert all(b" 408 " in answer and b"not complete after 0.5 seconds" in answer for answer in answers)
    assert server.get("/bytes/2").endswith(b"xx")


def test_bodies_count_against_a_total(running):
    """What was sent counts, not what was announced; it is given back with the request."""
    server = running(held_bytes=1000)
    announced = server.connect(POST + b"Content-Length: 999999\r\n\r\n" + b"x" * 500)
    eventually(lambda: server.get("/healthz").endswith(b"xx"))
    second = read(server.connect(POST + b"Connection: close\r\nContent-Length: 600\r\n\r\n" + b"x" * 600))
    assert b" 503 " in second and b"retry-after: 1" in second
    fits = POST + b"Connection: close\r\nContent-Length: 400\r\n\r\n" + b"x" * 400
    for _ in range(3):
        assert read(server.connect(fits)).endswith(b"xx")
    announced.close()
    whole = POST + b"Connection: close\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
    eventually(lambda: read(server.connect(whole)).endswith(b"xx"))


def test_watchers_are_answered_when_the_service_is_full(running):
    server = running(requests=3)
    clients = [server.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(3)]
    eventually(lambda: server.app.running == 3)
    refused = server.get("/bytes/2")
    assert b" 503 " in refused and b"retry-after: 1" in refused
    assert server.get("/healthz").endswith(b"xx") and server.get("/metrics").endswith(b"xx")
    # Their bodies, which they have no need of, keep nobody waiting.
    assert b" 200 " in server.connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").recv(1000)
    clients[0].close()
    eventually(lambda: server.get("/bytes/2").endswith(b"xx"))


def test_the_work_of_a_client_that_has_gone_is_cancelled(running):
    server = running()
    client = server.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(lambda: server.app.running)
    client.close()
    eventually(lambda: server.app.cancelled)
    assert server.counted == []


@pytest.mark.parametrize("size", [0, 65_535, 65_536, 65_537, 131_072, 1_000_000])
def test_answers_in_parts_are_whole(running, size):
    assert running().get(f"/bytes/{size}").partition(b"\r\n\r\n")[2] == b"x" * size


def test_an_answer_that_nobody_takes_ends(running):
    server = running(send_seconds=0.5)
    server.connect(b"GET /bytes/50000000 HTTP/1.1\r\nHost: x\r\n\r\n", SO_RCVBUF=4096)
    eventually(lambda: server.counted)
    eventually(lambda: not server.server.server_state.connections)


def test_the_rest_of_an_answer_that_nobody_takes_ends(running):
    """What uvicorn keeps of an answer that the application is done with."""
    server = running(idle_seconds=0.5)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server.connect(b"GET /bytes/60000 HTTP/1.1\r\nHost: x\r\n\r\n", SO_RCVBUF=4096)
    eventually(lambda: server.counted)
    eventually(lambda: not server.server.server_state.connections)


def test_an_answer_is_under_way_until_it_is_taken(running):
    server = running(requests=1)
    client = server.connect(b"GET /bytes/50000000 HTTP/1.1\r\nHost: x\r\n\r\n", SO_RCVBUF=4096)
    eventually(lambda: server.counted)
    for _ in range(3):
        assert b" 503 " in server.get("/bytes/2")
    client.close()
    eventually(lambda: server.get("/bytes/2").endswith(b"xx"))


def test_it_stops_whatever_clients_do(running):
    server = running(stop_seconds=1)
    body = server.connect(POST + b"Content-Length: 1000\r\n\r\nx")
    waits = server.connect(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    server.connect()
    server.connect(b"GET /", SO_RCVBUF=4096)
    server.connect(b"GET /bytes/50000000 HTTP/1.1\r\nHost: x\r\n\r\n", SO_RCVBUF=4096)
    eventually(lambda: server.app.running and server.counted)
    assert server.stop() < 5
    for client in (body, waits):
        answer = read(client)
        assert b" 503 " in answer and b"retry-after: 1" in answer and b"the service stops" in answer


@pytest.mark.parametrize(
    ("listening_on", "own", "foreign"),
    [
        ("127.0.0.1", ["localhost", "127.0.0.1", "[::1]"], ["0.0.0.0", socket.gethostname().lower()]),
        ("localhost", ["localhost", "127.0.0.1", "[::1]"], []),
        ("::1", ["localhost", "127.0.0.1", "[::1]"], []),
        ("127.0.0.2", ["127.0.0.2", "localhost"], []),
        ("0.0.0.0", ["localhost", "127.0.0.1", socket.gethostname().lower()], ["0.0.0.0", "*"]),
        ("192.0.2.7", ["192.0.2.7"], ["localhost", "127.0.0.1"]),
        ("2001:db8:0::7", ["[2001:db8::7]"], ["2001:db8:0::7"]),
        ("shop.example", ["shop.example"], ["localhost"]),
    ],
)
def test_hosts(listening_on, own, foreign):
    hosts = connections.hosts(listening_on)
    assert set(own) <= set(hosts) and not set(foreign) & set(hosts)


def test_allowed_hosts():
    hosts = connections.hosts("127.0.0.1", ["Shop.example", "*.shop.example", "192.0.2.7", "2001:DB8::1", "[::2]"])
    assert {"shop.example", "*.shop.example", "192.0.2.7", "[2001:db8::1]", "[::2]"} < set(hosts)
    assert "*" in connections.hosts("127.0.0.1", ["*"])
    for wrong in ("shop.example:80", "http://shop.example", "a*.example", "*example", "**", "", "[::1]:80", "a b"):
        with pytest.raises(UserError, match="allowed_hosts has"):
            connections.hosts("127.0.0.1", [wrong])


def test_connections_fit_what_the_process_may_open(monkeypatch):
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
    for files, connections_, requests in ((1024, 341, 170), (65536, 1000, 500), (-1, 1000, 500)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        limits = Limits.of_process()
        assert (limits.connections, limits.requests) == (connections_, requests)
