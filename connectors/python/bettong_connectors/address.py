"""Reads "host:port"; an IPv6 host stands in brackets, "[::1]:7000"."""

import socket

from bettong.errors import GraphError


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port. Raises `GraphError`, so that a typo is found at once."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (host and colon and port.isascii() and port.isdigit()):
        raise GraphError(
            f"{address!r} is no address; write 'host:port', such as '127.0.0.1:7000'"
            " or '[::1]:7000'"
        )
    if int(port) > 65535:
        raise GraphError(f"{address!r}: ports go up to 65535")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return what `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family_of(host: str) -> socket.AddressFamily:
    """Return IPv6 for an IPv6 literal, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
