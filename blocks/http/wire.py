"""HTTP by one set of rules: who gets a secret, where a redirect may lead, which proxy is asked, how long bytes take.

Of http.client, for the bytes: between the kernel and a part's buffer nothing copies them. A thread keeps its
connections for the next request.
"""

import base64
import http.client
import io
import re
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http import HTTPStatus
from threading import local
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

import httpx
from requests.utils import get_environ_proxies, select_proxy

from blocks.cleaning import cleaned, mask_from_now_on
from blocks.errors import Refused, Unavailable, Unsupported
from blocks.http.origins import Address, Reach, is_within_reach, literal, reach_of

FLOOR_BYTES_PER_SECOND = 64 << 10
"""A connection slower than this over a whole `stall_seconds` is given up: another one may be faster."""
PIECE_BYTES = 256 << 10
BESIDE_AT_MOST_BYTES = 8 << 20
"""What an answer may hold that is no body: heads, and what stands between chunks and behind them."""
KEPT_AT_MOST = 8
REDIRECTS_AT_MOST = 5
SAID_AT_MOST_BYTES = 64 << 10
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\d{1,18}|\*)")


class _CutShortError(OSError):
    """The body ended, or trickled, before it was whole."""


@dataclass(frozen=True)
class Ask:
    """One request. A plain GET changes nothing anywhere, so it may be sent again."""

    what: str
    """In the words of errors: `model.gguf of org/model at 1a2b`."""
    address: Address
    method: Literal["GET", "HEAD"] = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers for the origin of `address`; wherever redirects lead, no other gets them."""
    stall_seconds: float = 20.0
    led_from: Reach | None = None
    """From where somebody else led to `address`; None where a person chose it."""
    trusted_hosts: Collection[str] = ()
    """May be led to wherever they are."""


class Reply:
    """An answer, whose body has yet to come."""

    def __init__(self, ask: Ask, line: "_Line", response: http.client.HTTPResponse) -> None:
        self.ask, self._line, self._response = ask, line, response
        self.status = response.status
        # A header that comes twice is a list in two pieces, as pages' links are beside a cache's own.
        self.headers = {
            name.lower(): ", ".join(dict.fromkeys(response.headers.get_all(name, ()))) for name in response.headers
        }

    @property
    def address(self) -> Address:
        return self.ask.address

    @property
    def reach(self) -> Reach:
        return self._line.reach

    @property
    def is_good(self) -> bool:
        return self.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)

    @property
    def may_be_cut(self) -> bool:
        """Its body ends with the connection: nobody can tell its end from a break."""
        return self._response.length is None and not self._response.chunked

    @property
    def is_redirect(self) -> bool:
        return httpx.codes.is_redirect(self.status) and "location" in self.headers

    def fill(self, start: int, buffer: memoryview) -> None:
        """With the bytes of the whole from `start` on; Unavailable where they do not all come.

        Unsupported where whole files are all that can be had there.
        """
        with _translated(self.ask):
            self._check_range(start, len(buffer))
            announced = self._response.length
            if announced is not None and announced < len(buffer):
                raise _CutShortError(f"{announced} bytes were announced where {len(buffer)} were asked for")
            # http.client's own readinto waits until the whole buffer is full: a trickle would hold it for ever. What
            # it reads from returns what has come.
            straight = None if announced is None else self._response.fp.readinto1  # pyright: ignore[reportAttributeAccessIssue] - a BufferedReader
            filled = 0
            while filled < len(buffer):
                if straight is not None:
                    count = straight(buffer[filled:])
                else:
                    piece = self._response.read1(min(PIECE_BYTES, len(buffer) - filled))
                    count = len(piece)
                    buffer[filled : filled + count] = piece
                if not count:
                    raise _CutShortError(f"the body broke off after {filled} of {len(buffer)} bytes")
                filled += count
                self._line.plug.was_body(count)
            if announced == len(buffer):
                self._response.length = 0
                self._response.close()  # it is at its end: the connection is free for the next one

    def pieces(self) -> Iterator[bytes]:
        """The body as the network brings it: collecting larger pieces doubles the CPU time."""
        with _translated(self.ask):
            self._check_encoding()
            while self._response.length != 0 and (piece := self._response.read1(PIECE_BYTES)):
                self._line.plug.was_body(len(piece))
                yield piece
            if self._response.length:
                raise _CutShortError(f"the body broke off {self._response.length} bytes before its end")
            self._response.close()

    def body(self, most_bytes: int) -> bytes:
        """All of it; Refused where it is longer than anything that was asked for can be."""
        found = bytearray()
        for piece in self.pieces():
            found += piece
            if len(found) > most_bytes:
                raise Refused(
                    f"{self.address.origin} goes on after {most_bytes} bytes of {self.ask.what}; is it a hub?"
                )
        return bytes(found)

    def said(self) -> str:
        """The beginning of a body that is an error's: nobody can rely on it."""
        try:
            return next(self.pieces(), b"")[:SAID_AT_MOST_BYTES].decode(errors="replace")
        except (Refused, Unavailable):
            return ""

    def _check_encoding(self) -> None:
        if (encoding := self.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            raise Refused(
                f"{self.address.origin} sends {self.ask.what} as {cleaned(encoding, 40)}, although the bytes were "
                f"asked for as they are; turn compression off there"
            )

    def _check_range(self, start: int, size_bytes: int) -> None:
        """Are these the bytes that were asked for? What a server says counts, whatever its status."""
        self._check_encoding()
        said = self.headers.get("content-range")
        if self.headers.get("content-type", "").lower().startswith("multipart/byteranges"):
            raise _CutShortError("the bytes come as several ranges where one was asked for")
        if said is None:
            # Some proxies leave it out of 206; the hash finds out.
            if self.status == HTTPStatus.OK and start:
                raise Unsupported(
                    f"{self.address.origin} sends whole files only, no ranges, so {self.ask.what} cannot be had from "
                    f"it; turn ranges on there, or use another hub"
                )
            return
        found = _RANGE.fullmatch(said.strip())
        if found is None or int(found[1]) != start or int(found[2]) - start + 1 < size_bytes:
            raise _CutShortError(f"it sent {cleaned(said, 60)} where bytes {start}-{start + size_bytes - 1} were asked")

    def close(self) -> None:
        """Keep the connection where nothing is left on it."""
        if self._response.isclosed() and not self._response.will_close:
            _kept.keep(self.address.origin, self._line)
        else:
            self._line.close()


@contextmanager
def answer(ask: Ask) -> Iterator[Reply]:
    """What comes back, as it comes: no redirect is followed."""
    with _translated(ask):
        reply = _asked(ask)
    try:
        yield reply
    except BaseException:
        reply._line.close()  # noqa: SLF001 - what is left of the body is in its way
        raise
    reply.close()


@contextmanager
def fetched(ask: Ask) -> Iterator[Reply]:
    """What comes back at the end of all redirects: each leads outwards, or stays where the one before came from."""
    home = ask.address
    for _ in range(REDIRECTS_AT_MOST):
        with answer(ask) as reply:
            if not reply.is_redirect:
                yield reply
                return
            reply.said()
            ask = _led_on(ask, reply, home)
    raise Refused(f"{home.origin} redirects {ask.what} for ever; check it")


def _led_on(ask: Ask, reply: Reply, home: Address) -> Ask:
    try:
        goal = ask.address.led_to(reply.headers["location"])
    except ValueError as error:
        raise Refused(
            f"{ask.address.origin} redirects {ask.what} to {error}; nobody follows it there: ask whoever runs it"
        ) from None
    secrets = ask.secrets if goal.origin == home.origin == ask.address.origin else {}
    return replace(ask, address=goal, secrets=secrets, led_from=reply.reach)


def _asked(ask: Ask) -> Reply:
    headers = {
        "Host": ask.address.netloc,
        "User-Agent": "skyferry",
        "Accept-Encoding": "identity",
        **ask.headers,
        **ask.secrets,
    }
    line = _kept.take(ask.address.origin)
    if line is not None:
        try:
            _check_reach(ask, line.reach)
            return line.ask(ask, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            line.close()  # it was idle for too long
        except BaseException:
            line.close()
            raise
    line = _connected(ask)
    try:
        return line.ask(ask, headers)
    except BaseException:
        line.close()
        raise


@dataclass(frozen=True)
class _Line:
    """A connection to an origin, or to the proxy before it."""

    connection: http.client.HTTPConnection
    plug: "_Plug"
    reach: Reach
    proxied: Mapping[str, str] | None = field(repr=False)
    """What a proxy wants to be told with each request, which is then for the whole address."""

    def ask(self, ask: Ask, headers: Mapping[str, str]) -> Reply:
        self.plug.begin(ask.stall_seconds)
        target = ask.address.target if self.proxied is None else f"{ask.address.origin}{ask.address.target}"
        self.connection.request(ask.method, target, headers={**headers, **(self.proxied or {})})
        reply = Reply(ask, self, self.connection.getresponse())
        self.plug.begin(ask.stall_seconds)  # to think before an answer is no trickle
        return reply

    def close(self) -> None:
        self.connection.close()


class _Kept(local):
    """Each thread's connections by origin; the one that was used last goes last."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, _Line] = OrderedDict()

    def take(self, origin: str) -> _Line | None:
        return self._lines.pop(origin, None)

    def keep(self, origin: str, line: _Line) -> None:
        if (before := self._lines.pop(origin, None)) is not None:
            before.close()
        self._lines[origin] = line
        while len(self._lines) > KEPT_AT_MOST:
            self._lines.popitem(last=False)[1].close()


_kept = _Kept()


class _Response(http.client.HTTPResponse):
    """Interim answers, such as 103 with its hints, are passed over; of itself http.client knows 100 alone."""

    def begin(self) -> None:
        super().begin()
        while self.status < HTTPStatus.OK and self.status != HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # pyright: ignore[reportAttributeAccessIssue] - as before the first one
            super().begin()


class _Plug:
    """A socket as http.client uses it, which gives up whoever trickles: headers, bodies, and what is between chunks.

    Only the time in which bytes were waited for counts. Whoever floods us with what is no body is given up as well:
    http.client reads interim answers, chunks' extensions and trailers for as long as they come.
    """

    def __init__(self, plain: socket.socket, stall_seconds: float) -> None:
        self._plain = plain
        self.sendall, self.close = plain.sendall, plain.close
        self.begin(stall_seconds)

    def begin(self, stall_seconds: float) -> None:
        """Count anew."""
        self._plain.settimeout(stall_seconds)
        self._stall_seconds, self._bytes, self._seconds, self._beside_bytes = stall_seconds, 0, 0.0, 0

    def was_body(self, count: int) -> None:
        """So many of the bytes that came."""
        self._beside_bytes -= count

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode  # http.client reads bytes
        return io.BufferedReader(_Paced(self._plain.makefile("rb", buffering=0), self))

    def came(self, count: int, seconds: float) -> None:
        if self._beside_bytes > BESIDE_AT_MOST_BYTES:  # by now it is known what of the bytes before was body
            raise _CutShortError(f"{self._beside_bytes} bytes came that are no body")
        self._bytes += count
        self._beside_bytes += count
        self._seconds += seconds
        if self._seconds > self._stall_seconds:
            if self._bytes < FLOOR_BYTES_PER_SECOND * self._seconds:
                raise _CutShortError(f"only {self._bytes} bytes came in {self._seconds:.1f} s")
            self._bytes, self._seconds = 0, 0.0


class _Paced(io.RawIOBase):
    """What a plug is read through."""

    def __init__(self, raw: io.RawIOBase, plug: _Plug) -> None:
        self._raw, self._plug = raw, plug

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        began = time.monotonic()
        count = self._raw.readinto(buffer) or 0
        self._plug.came(count, time.monotonic() - began)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _connected(ask: Ask) -> _Line:
    address = ask.address
    proxy = _proxy_for(address)
    if proxy is None:
        plain, reach = _dialled(ask)
        proxied = None
    else:
        if (host := literal(address.host)) is not None:
            _check_reach(ask, reach_of(host))
        # It resolves names and has rules of its own; what it reaches is outside as far as anybody here can say.
        plain, reach = proxy.dialled(ask.stall_seconds), "public"
        proxied = proxy.login if address.scheme == "http" else None
    try:
        if address.scheme == "https":
            if proxy is not None:
                proxy.lead_on(plain, address, ask.stall_seconds)
            plain = _context().wrap_socket(plain, server_hostname=address.host)
    except BaseException:
        plain.close()
        raise
    connection = http.client.HTTPConnection(address.host, address.port)
    plug = _Plug(plain, ask.stall_seconds)
    connection.sock, connection.auto_open, connection.response_class = cast("socket.socket", plug), 0, _Response
    return _Line(connection, plug, reach, proxied)


def _dialled(ask: Ask) -> tuple[socket.socket, Reach]:
    """Connect to one of the addresses that were looked at: a name that means another one a moment later is no help."""
    address, tried = ask.address, OSError("its name has no address")
    near = set[Reach]()
    for family, kind, protocol, _, place in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        reach = reach_of(str(place[0]))
        if not _may_reach(ask, reach):
            near.add(reach)
            continue
        plain = socket.socket(family, kind, protocol)
        try:
            plain.settimeout(ask.stall_seconds)
            plain.connect(place)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return plain, reach_of(str(plain.getpeername()[0]))
        except OSError as error:
            plain.close()
            tried = error
    for reach in near:
        _check_reach(ask, reach)
    raise tried


def _may_reach(ask: Ask, reach: Reach) -> bool:
    return (
        ask.led_from is None
        or ask.address.host in ask.trusted_hosts
        or is_within_reach(goal=reach, origin=ask.led_from)
    )


def _check_reach(ask: Ask, reach: Reach) -> None:
    if not _may_reach(ask, reach):
        raise Refused(
            f"{ask.what} was redirected to {ask.address.origin}, which is a {reach} address, where no {ask.led_from} "
            f"server may lead; if it is the hub's own, name {ask.address.host} among the block's content_hosts"
        )


@dataclass(frozen=True)
class _Proxy:
    host: str
    port: int
    login: Mapping[str, str] = field(repr=False)

    def dialled(self, timeout_seconds: float) -> socket.socket:
        try:
            return socket.create_connection((self.host, self.port), timeout_seconds)
        except OSError as error:
            raise OSError(f"no connection to the proxy {self.host}:{self.port}: {error}") from None

    def lead_on(self, plain: socket.socket, address: Address, stall_seconds: float) -> None:
        """Have it connect to the origin, so that the two speak TLS past it."""
        host = f"[{address.host}]" if ":" in address.host else address.host
        lines = [f"CONNECT {host}:{address.port} HTTP/1.1", f"Host: {host}:{address.port}"]
        lines += [f"{name}: {value}" for name, value in self.login.items()]
        plain.sendall("\r\n".join((*lines, "", "")).encode())
        plug = cast("socket.socket", _Plug(plain, stall_seconds))
        response = _Response(plug, method="CONNECT")
        response.begin()
        response.close()
        if response.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            raise Refused(
                f"the proxy {self.host}:{self.port} wants a login before it leads to {address.origin}; "
                f"write it into HTTPS_PROXY as http://user:password@host:port"
            )
        if response.status != HTTPStatus.OK:
            raise OSError(f"the proxy {self.host}:{self.port} answered {response.status}")


def _proxy_for(address: Address) -> _Proxy | None:
    """Of the environment, as curl and requests read it: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""
    url = select_proxy(address.origin, get_environ_proxies(address.origin))
    return _proxy(url) if url else None


@lru_cache(maxsize=8)
def _proxy(url: str) -> _Proxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "http" or not host:
        raise Refused(
            f"a proxy of the environment is no http:// address but {cleaned(parts.scheme, 20) or 'something else'}; "
            f"name one in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY that speaks HTTP, or the host in NO_PROXY"
        )
    if parts.username is None:
        return _Proxy(host, port or 80, {})
    user, password = unquote(parts.username), unquote(parts.password or "")
    mask_from_now_on(password)
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    return _Proxy(host, port or 80, {"Proxy-Authorization": f"Basic {login}"})


@contextmanager
def _translated(ask: Ask) -> Iterator[None]:
    """What sockets, TLS and http.client raise, with the name of the host that it was."""
    origin = ask.address.origin
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Refused(
            f"{origin} was not asked for {ask.what}: {cleaned(error)}; if the authority is your own, name its "
            f"certificate in SSL_CERT_FILE"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"{origin} did not send {ask.what}: {cleaned(repr(error))}; check the connection to it"
        ) from None


@lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    """The authorities that httpx trusts: SSL_CERT_FILE, SSL_CERT_DIR, or certifi's."""
    return httpx.create_ssl_context()
