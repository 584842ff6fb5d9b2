"""Addresses of servers, and where one may lead to another: rules only, and nothing is asked here."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from socket import inet_aton, inet_ntoa
from typing import Literal, Self
from urllib.parse import quote, urljoin, urlsplit

PORTS = {"http": 80, "https": 443}
LONGEST_CHARACTERS = 16 << 10

Reach = Literal["public", "loopback", "link-local", "private", "shared", "unspecified", "multicast", "disguised"]
"""From where an IP address can be reached. `disguised`: an IPv4 address within IPv6, which a check may overlook."""

_BREAKS = re.compile(r"[\x00-\x1f\x7f\\]")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_.])?")
_SHARED = IPv4Network("100.64.0.0/10")
"""Of carriers and overlay networks; one cloud's metadata are there."""
_OF_SITES = IPv6Network("fec0::/10")
_TRANSLATED = IPv6Network("64:ff9b::/96")
_OF_THE_HOST = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"))
"""Look public, and are what two clouds tell their own machines about themselves."""


@dataclass(frozen=True)
class Address:
    """What one request is sent to. As text it has no query, which may be a signature."""

    scheme: str
    host: str
    """In lower case; an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query."""

    @classmethod
    def of(cls, url: str) -> Self:
        """Of an address with its scheme; ValueError says what is wrong with it, and holds nothing of it."""
        if len(url) > LONGEST_CHARACTERS:
            raise ValueError(f"an address of {len(url)} characters")
        if _BREAKS.search(url):
            raise ValueError("an address with a line break, a backslash or another control character")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ValueError("what is no address") from None
        if parts.scheme not in PORTS:
            raise ValueError("an address that is neither http nor https")
        if "@" in parts.netloc:
            raise ValueError("an address with a user or a password in it")
        # What is sent is ASCII; http.client reads headers as Latin-1, so these are the server's own bytes.
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~", encoding="latin-1", errors="replace")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?[]", encoding="latin-1", errors="replace")
        return cls(parts.scheme, _host(host), PORTS[parts.scheme] if port is None else port, target)

    def led_to(self, location: str) -> Self:
        """Where a redirect from here leads; ValueError where nobody should follow."""
        if _BREAKS.search(location):
            raise ValueError("an address with a line break, a backslash or another control character")
        try:
            joined = urljoin(f"{self.origin}{self.target}", location.strip())
        except ValueError:
            raise ValueError("what is no address") from None
        goal = self.of(joined)
        if (self.scheme, goal.scheme) == ("https", "http"):
            raise ValueError("from https to http, where everybody could read along")
        return goal

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: a secret goes to one of these and nowhere else."""
        return f"{self.scheme}://{self.netloc}"

    def __str__(self) -> str:
        return self.origin + self.target.partition("?")[0]


def reach_of(address: str) -> Reach:
    """Of an IP address as it is connected to."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip in _TRANSLATED:  # how networks with IPv6 alone reach the others
            ip = IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.ipv4_mapped or ip.teredo or ip.sixtofour:
            return "disguised"
    kinds: tuple[tuple[Reach, bool], ...] = (
        ("unspecified", ip.is_unspecified),
        ("loopback", ip.is_loopback),
        ("link-local", ip.is_link_local or any(ip in network for network in _OF_THE_HOST)),
        ("multicast", ip.is_multicast),
        ("shared", ip in _SHARED),
        ("private", not ip.is_global or ip.is_reserved or ip in _OF_SITES),
    )
    for reach, is_so in kinds:
        if is_so:
            return reach
    return "public"


def is_within_reach(goal: Reach, origin: Reach) -> bool:
    """May an answer from one place lead to the other? Outwards always; inwards only where it came from there."""
    return goal == "public" or (goal == origin and goal != "disguised")


def literal(host: str) -> str | None:
    """The host where it is an IP address itself, as whoever connects reads it, and None where it is a name.

    `127.1` and `0x7f000001` are the loopback address too, and `localhost` is nothing else: RFC 6761.
    """
    host = host.partition("%")[0].rstrip(".")
    if f".{host}".endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        return inet_ntoa(inet_aton(host))
    except OSError:
        return None


def _host(host: str) -> str:
    if ":" in host:
        try:
            IPv6Address(host)
        except ValueError:
            raise ValueError("an address whose host is no IPv6 address") from None
        return host
    try:
        host = host.encode("idna").decode()
    except UnicodeError:
        raise ValueError("an address whose host is no name") from None
    if not _HOST.fullmatch(host):
        raise ValueError("an address whose host is no name")
    return host
