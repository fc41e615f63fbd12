"""Sockets: listeners, connections, pools, and the back-pressure between them."""
