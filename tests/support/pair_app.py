"""The app of ``pair``: adds, echoes, and tells what it was asked.  Run as ``python pair_app.py PORT``.

| request | answer |
|---|---|
| ``POST …/add`` | the sum of ``arg1`` and ``arg2`` |
| any ``/echo`` | the body, under its own media type |
| any ``/told…`` | verb, path, header fields and length of the body, as JSON; ``x-answer: from the app`` |
| any ``/teapot`` | 418, ``short and stout`` |
| any ``/broken`` | 500, an error of the app's own in JSON |
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        """Answer one request."""
        body = self._body()
        path = self.path.partition("?")[0]
        if path.endswith("/add"):
            numbers = json.loads(body)
            self._send(200, json.dumps(numbers["arg1"] + numbers["arg2"]).encode(), "application/json")
        elif path == "/echo":
            self._send(200, body, self.headers.get("content-type", "application/octet-stream"))
        elif path.startswith("/told"):
            told = {
                "verb": self.command,
                "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "length": len(body),
            }
            self._send(200, json.dumps(told).encode(), "application/json")
        elif path == "/teapot":
            self._send(418, b"short and stout", "text/plain")
        elif path == "/broken":
            self._send(500, b'{"errorCode":"OUT_OF_STOCK","message":"none left"}', "application/json")
        else:
            self._send(404, b"no such method", "text/plain")

    def __getattr__(self, name: str) -> object:
        """Answer every verb in the same way: the base class looks for ``do_GET`` and the like."""
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-answer", "from the app")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by the base class
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """Takes many connections at once."""

    request_queue_size = 256


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
