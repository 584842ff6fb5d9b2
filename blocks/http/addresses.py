"""Addresses are compared by what they are and not by how they are spelt."""

import ipaddress
import socket

from blocks.errors import Refused


def canonical(address: str) -> str:
    """The one spelling of an IP and a port, as HAProxy writes it; Refused where it is none."""
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if "%" in bare:
        raise Refused(
            f"{address} has a zone, which means something on one host alone; give an address without one, that the "
            f"gateway's host can reach"
        )
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        ip = None
    if ip is None or (ip.version == 6) != (bare != host) or not _is_port(port):  # noqa: PLR2004 - of the protocol
        raise Refused(f"{address} is no address; give an IP and a port, as in 192.0.2.7:8000 or [2001:db8::7]:8000")
    return spelt(bare, port)


def in_one_spelling(address: str) -> str:
    """As the gateway has it, to be compared; as it is where it is none, which the gateway then says."""
    try:
        return canonical(address)
    except Refused:
        return address


def spelt(host: str, port: str) -> str:
    """An IP that was found to be one, with its port."""
    if ":" not in host:
        return f"{host}:{int(port)}"
    # Not as ipaddress does it, which has no dots in ::ffff:192.0.2.7.
    return f"[{socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, host))}]:{int(port)}"


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65535  # noqa: PLR2004 - of TCP
