"""Bytes to events and back: the protocols and the rules of requests, without sockets or clocks."""
