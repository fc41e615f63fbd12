"""Decisions on failures: try again, wait how long, give up. No sockets and no clock."""
