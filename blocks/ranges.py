"""Part of what a URL holds, read into a buffer: no copy, and a connection that is kept for the next part."""

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from ssl import SSLContext
from threading import local
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

FLOOR_BYTES_PER_SECOND = 64 << 10
"""A connection slower than this over a whole `stall_seconds` is given up: another one may be faster."""

SAID_AT_MOST_BYTES = 64 << 10


class CutShortError(OSError):
    """The body ended, or trickled, before the buffer was full."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""

    @property
    def is_filled(self) -> bool:
        return self.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)


class _Kept(local):
    """Each thread's connections by scheme and host, and whether a proxy has to be told the whole address."""

    def __init__(self) -> None:
        self.connections: dict[tuple[str, str], tuple[http.client.HTTPConnection, bool]] = {}


_kept = _Kept()


def read_range(url: str, headers: Mapping[str, str], start: int, buffer: memoryview, *, stall_seconds: float) -> Answer:
    """Fill the buffer from byte `start`; where the answer is no success, the buffer is as it was.

    Follows no redirect. Raises OSError or HTTPException where the connection fails, breaks off or stalls.
    """
    parts = urlsplit(url)
    place = (parts.scheme, parts.netloc)
    asked = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{start + len(buffer) - 1}", **headers}
    if not len(buffer):
        del asked["Range"]  # no range has no byte
    is_kept = place in _kept.connections
    connection, wants_whole = _kept.connections.pop(place, None) or _connection(parts, stall_seconds)
    target = url if wants_whole else parts._replace(scheme="", netloc="", fragment="").geturl()
    try:
        try:
            connection.request("GET", target, headers=asked)
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if not is_kept:
                raise
            connection.close()  # it was idle for too long; http.client connects again by itself
            connection.request("GET", target, headers=asked)
            response = connection.getresponse()
        answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()})
        if answer.is_filled:
            _fill(response, start, buffer, stall_seconds)
        else:
            response.read(SAID_AT_MOST_BYTES)
        if response.isclosed() and not response.will_close:
            _kept.connections[place] = connection, wants_whole
        else:
            connection.close()
    except BaseException:
        connection.close()
        raise
    return answer


def _fill(response: http.client.HTTPResponse, start: int, buffer: memoryview, stall_seconds: float) -> None:
    if response.status == HTTPStatus.OK and start:
        raise CutShortError("the server sends whole files only, no ranges")
    announced = response.length
    if announced is not None and announced < len(buffer):
        raise CutShortError(f"{announced} bytes were announced where {len(buffer)} were asked for")
    # http.client's own readinto waits until the whole buffer is full: a trickle would hold it for ever. What it reads
    # from returns what has come; chunked bodies, which no content host sends, need its decoding.
    read = response.readinto if announced is None else response.fp.readinto1  # pyright: ignore[reportAttributeAccessIssue] - a BufferedReader
    filled, window_bytes, window_began = 0, 0, time.monotonic()
    while filled < len(buffer):
        count = read(buffer[filled:])
        if not count:
            raise CutShortError(f"the body broke off after {filled} of {len(buffer)} bytes")
        filled += count
        window_bytes += count
        if (seconds := time.monotonic() - window_began) > stall_seconds:
            if window_bytes < FLOOR_BYTES_PER_SECOND * seconds:
                raise CutShortError(
                    f"only {window_bytes} bytes came in {seconds:.1f} s, {filled} of {len(buffer)} in all"
                )
            window_bytes, window_began = 0, time.monotonic()
    if announced == len(buffer):
        response.length = 0
        response.close()  # the response is at its end: the connection is free for the next one


def _connection(parts: SplitResult, timeout_seconds: float) -> tuple[http.client.HTTPConnection, bool]:
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    host = urlsplit(proxy).netloc if proxy else parts.netloc
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, timeout=timeout_seconds), proxy is not None
    connection = http.client.HTTPSConnection(host, timeout=timeout_seconds, context=_context())
    if proxy:
        connection.set_tunnel(parts.netloc)
    return connection, False


@lru_cache(maxsize=1)
def _context() -> SSLContext:
    """The authorities that the rest of the hub's client trusts."""
    return httpx.create_ssl_context()
