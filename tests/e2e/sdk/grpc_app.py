"""A gRPC app made with Dapr's SDK for Python.  Run as ``python grpc_app.py PORT``."""

from __future__ import annotations

import json
import sys

from dapr.clients.grpc._request import InvokeMethodRequest
from dapr.clients.grpc._response import InvokeMethodResponse
from dapr.ext.grpc import App

app = App()


@app.method("add")  # type: ignore[untyped-decorator]
def add(request: InvokeMethodRequest) -> InvokeMethodResponse:
    """Add two numbers."""
    numbers = json.loads(request.text())
    answer = json.dumps(numbers["arg1"] + numbers["arg2"])
    return InvokeMethodResponse(answer.encode(), "application/json", headers=(("x-answer", "from the app"),))


@app.method("echo")  # type: ignore[untyped-decorator]
def echo(request: InvokeMethodRequest) -> InvokeMethodResponse:
    """Answer with what was sent."""
    return InvokeMethodResponse(request.data, request.content_type)


app.register_health_check(lambda: None)

if __name__ == "__main__":
    print("started", flush=True)
    app.run(int(sys.argv[1]), "127.0.0.1")
