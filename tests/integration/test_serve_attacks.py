"""The service with its own limits against clients that mean no good: minutes, for what other tests show in seconds."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

pytest.importorskip("fastapi", reason="the service needs fastapi")
pytestmark = pytest.mark.slow

HEAD = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LARGE = {"histories": [["50", "172", "1"] * 10] * 25, "samples": 100, "sampling_steps": 32}
SMALL = {"histories": [["50", "172", "1"]], "sampling_steps": 1}


class Served:
    """A service of its own for one test."""

    def __init__(self, checkpoint):
        command = [sys.executable, "-m", "recbole_diffurec", "serve", str(checkpoint), "--port=0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().split()[1].rstrip("/")
        self.clients = []

    def connect(self, data: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        self.clients.append(client)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(30)
        client.connect(("127.0.0.1", int(self.address.rsplit(":", 1)[1])))
        client.sendall(data)
        return client

    def send(self, request: dict, **options) -> socket.socket:
        body = json.dumps(request).encode()
        return self.connect(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body, **options)

    def seconds(self, request: dict) -> float:
        """That a request takes."""
        started = time.perf_counter()
        assert requests.post(f"{self.address}/recommend", json=request, timeout=300).status_code == 200
        return time.perf_counter() - started

    def stop(self) -> float:
        """Seconds from SIGTERM to the end."""
        started = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.perf_counter() - started


@pytest.fixture
def served(served_checkpoint):
    service = Served(served_checkpoint)
    yield service
    service.process.kill()
    service.process.wait()
    for client in service.clients:
        client.close()


def open_ones(clients) -> int:
    """How many connections the service has not ended."""
    count = 0
    for client in clients:
        client.setblocking(False)
        try:
            while client.recv(65536):
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def test_silent_connections_lock_nobody_out(served):
    silent = [served.connect() for _ in range(1010)]
    assert requests.get(f"{served.address}/healthz", timeout=5).status_code == 200
    assert served.seconds(SMALL) < 5
    time.sleep(15)
    assert open_ones(silent) == 0


def test_bodies_of_a_byte_at_a_time_are_not_kept(served):
    slow = [served.connect(HEAD + b"Content-Length: 900000\r\n\r\n") for _ in range(50)]
    end = time.perf_counter() + 30
    while time.perf_counter() < end and open_ones(slow):
        for client in slow:
            with contextlib.suppress(OSError):
                client.send(b" ")
        time.sleep(0.5)
    assert open_ones(slow) == 0


def test_it_stops_within_ten_seconds_whatever_clients_do(served):
    served.connect()
    served.connect(HEAD + b"Content-Length: 1000\r\n\r\n{")
    for _ in range(3):
        served.send({"histories": [["1"]] * 256, "k": 1000}, receive_buffer=4096)
    for _ in range(12):
        served.send(LARGE)
    time.sleep(3)
    assert served.stop() < 10


def test_a_small_request_among_twelve_large_ones(served):
    served.seconds(SMALL)
    alone = served.seconds(SMALL)
    clients = [served.send(LARGE) for _ in range(12)]
    time.sleep(1)
    assert max(served.seconds(SMALL) for _ in range(5)) < 2 + 10 * alone
    for client in clients:
        client.close()
    time.sleep(1)
    assert served.seconds({**LARGE, "samples": 1}) < 20  # nothing of the twelve is before it


def test_it_answers_when_its_queue_is_full(served):
    with ThreadPoolExecutor(60) as threads:

        def large(_):
            with contextlib.suppress(requests.Timeout):
                return requests.post(f"{served.address}/recommend", json=LARGE, timeout=10)

        answers = threads.map(large, range(60))
        time.sleep(4)
        assert requests.get(f"{served.address}/healthz", timeout=5).status_code == 200
        assert served.seconds(SMALL) < 5
    refused = [answer for answer in answers if answer is not None and answer.status_code == 503]
    assert len(refused) >= 60 - 32 - 12 and all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
