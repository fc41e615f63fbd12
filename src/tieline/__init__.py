"""Tieline: a service-invocation sidecar, wire- and API-compatible with Dapr's."""

__version__ = "0.1.0"
