"""The server process: sockets, TLS, leaving without losing a request."""
