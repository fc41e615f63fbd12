"""Finding apps by multicast DNS, as ``daprd`` does by default.

What is said and believed (``responder``, ``finder``) is decided without sockets or clocks; ``links`` has the sockets,
and ``resolver`` puts them together.
"""
