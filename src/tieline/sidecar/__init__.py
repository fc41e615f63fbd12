"""The sidecar: builds all of it from what the user asked for, and starts, reloads, drains and stops it."""

from tieline.sidecar.life import Sidecar

__all__ = ["Sidecar"]
