"""The called app of ``tieline demo``: ``mathService``, which adds two numbers. Plain Python, no SDK."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

PATHS: Final = frozenset({"/add", "/api/v1/add"})
MAX_BODY: Final = 65536


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes here: the second would wait 40 ms for the first to be acknowledged.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(min(MAX_BODY, int(self.headers.get("Content-Length") or 0)))
        if self.path.partition("?")[0] not in PATHS:
            self._answer(404, f"mathService has no {self.path}")
            return
        try:
            numbers = json.loads(body)
            self._answer(200, json.dumps(numbers["arg1"] + numbers["arg2"]))
        except (ValueError, KeyError, TypeError) as error:
            self._answer(400, f'send {{"arg1": 10, "arg2": 23}}: {error}')

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by the base class
        """Keep quiet: the demo shows its calls itself."""


def main(port: int) -> None:
    """Serve on loopback until the process is ended."""
    ThreadingHTTPServer(("127.0.0.1", port), _Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
