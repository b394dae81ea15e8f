"""As much of the Hugging Face Hub as its own library asks for when a model is pushed and fetched, on this machine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0" * 20


class Hub:
    """What it has: the files of each model by name, and the requests that came."""

    def __init__(self, address: str):
        self.address = address
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"POST {self.path}")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.hub.files.setdefault(name, {})
            self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            usual = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **usual} for file in json.loads(body)["files"]]
            self._json({"files": files})
        elif self.path.endswith("/commit/main"):
            name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                value = json.loads(line)
                if value["key"] == "file":
                    self.hub.files[name][value["value"]["path"]] = base64.b64decode(value["value"]["content"])
            url = f"{self.hub.address}/{name}/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self._answer(404, b"")

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        name, found, file = self.path.lstrip("/").partition("/resolve/main/")
        if not found or name not in self.hub.files:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif file not in self.hub.files[name]:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            content = self.hub.files[name][file]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"})

    do_HEAD = do_GET


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers while the context is open."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
