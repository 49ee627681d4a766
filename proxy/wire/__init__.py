"""Bytes and connections: HTTP/1.1 between two sockets, knowing nothing of routes."""
