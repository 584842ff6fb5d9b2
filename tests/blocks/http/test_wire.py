"""HTTP by one set of rules, on real sockets: who gets a secret, where nobody is led, which proxy is asked."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from blocks.errors import Refused, Unavailable
from blocks.http import wire
from blocks.http.origins import Address
from blocks.http.wire import Ask, fetched
from blocks.local.processes import free_port
from tests.hubs import Asked, Said, Server, serving

TOKEN = "Bearer very-secret-token"
GOOD = Said(body=b"data")


def ask(url: str, **more: object) -> Ask:
    return Ask("the file", Address.of(url), secrets={"Authorization": TOKEN}, **more)  # pyright: ignore[reportArgumentType] - as the test says


def body(asked: Ask) -> bytes:
    with fetched(asked) as reply:
        return b"".join(reply.pieces())


def to(location: str) -> Said:
    return Said(302, {"Location": location})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's own are none of these tests' business."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def tokens(server: Server) -> list[str | None]:
    return [asked.headers.get("authorization") for asked in server.asked]


@pytest.mark.parametrize(
    "location", ["/b", "b", "//{address}/b", "http://{address}/b", "HTTP://{address}/b#part", "?b"]
)
def test_the_token_goes_to_its_origin(location: str) -> None:
    """However the hub writes its own address."""
    with serving(lambda asked: GOOD if "b" in asked.path else to(location.format(address=hub.address))) as hub:
        assert body(ask(f"{hub.url}/a")) == b"data"
    assert tokens(hub) == [TOKEN, TOKEN]


def test_the_token_goes_nowhere_else() -> None:
    """Not to another port of the host, not to another name of it, and not back where somebody else sends us."""
    with serving(lambda asked: GOOD if asked.path == "/end" else to(there.url)) as hub:
        with serving(lambda _: to(f"http://localhost:{port}/b")) as there:
            port = hub.address.rpartition(":")[2]
            with pytest.raises(Refused, match="for ever"):
                body(ask(f"{hub.url}/a"))
        with serving(lambda _: to(f"{hub.url}/end")) as there:
            assert body(ask(f"{hub.url}/a")) == b"data"
            assert tokens(there) == [None]
    assert tokens(hub)[0] == TOKEN
    assert tokens(hub)[-1] is None
    assert set(tokens(hub)[1:-2]) == {None}


@pytest.mark.parametrize(
    "location", ["http://me:pw@{address}/b", "http://{address}/b\r\n c", "ftp://{address}/b", "http://"]
)
def test_nobody_goes_where_it_makes_no_sense(location: str) -> None:
    """A redirect with a user, over two lines, or to what is no HTTP is refused by the name of who sent it."""
    with serving(lambda _: to(location.format(address=hub.address))) as hub:
        with pytest.raises(Refused, match=rf"{hub.address} redirects the file") as refusal:
            body(ask(f"{hub.url}/a"))
        assert "pw" not in str(refusal.value)
    assert {asked.path for asked in hub.asked} == {"/a"}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",  # noqa: S104 - nothing binds to it
        "[::ffff:127.0.0.1]",
        "127.0.0.2",
    ],
)
def test_nobody_is_led_inwards(host: str) -> None:
    """From outside to this machine, in whatever spelling: what listens here is not even asked."""
    with serving(lambda _: GOOD) as inside:
        port = inside.address.rpartition(":")[2]
        with pytest.raises((Refused, Unavailable)) as error:
            body(ask(f"http://{host}:{port}/col/delete?collection=x", led_from="public"))
        assert isinstance(error.value, Refused) or "gaierror" in str(error.value)
    assert inside.asked == []


def test_a_kept_connection_is_no_way_in() -> None:
    """Somebody who may go there has left a connection; who is led there from outside may not use it."""
    with serving(lambda _: GOOD) as inside:
        assert body(ask(inside.url)) == b"data"
        with pytest.raises(Refused, match="content_hosts"):
            body(ask(inside.url, led_from="public"))
        assert body(ask(inside.url, led_from="public", trusted_hosts=("127.0.0.1",))) == b"data"
    assert len(inside.asked) == 2


def test_who_is_there_leads_there() -> None:
    """A hub on loopback has its content on loopback, under another address: as the demo has it."""
    with serving(lambda _: GOOD, "127.0.0.2") as content, serving(lambda _: to(content.url)) as hub:
        assert body(ask(hub.url)) == b"data"
    assert tokens(content) == [None]


# --- Proxies --------------------------------------------------------------------------------------------------------


def test_a_proxy_is_asked_and_gets_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """ALL_PROXY too, with a login, which is no password of the hub's; the hub's token goes through it to the hub."""
    with serving(lambda _: GOOD) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://me:pa%2055word@{proxy.address}")
        assert body(ask("http://hub-7.example/a?b=c")) == b"data"
        assert body(ask("http://hub-7.example/a?b=c")) == b"data"
    assert proxy.paths == ["http://hub-7.example/a?b=c"] * 2
    assert proxy.asked[0].headers["proxy-authorization"] == "Basic bWU6cGEgNTV3b3Jk"
    assert (proxy.asked[0].headers["host"], tokens(proxy)[0]) == ("hub-7.example", TOKEN)


@pytest.mark.parametrize("left_out", ["127.0.0.1", "127.0.0.0/8", "*"])
def test_a_host_may_be_left_out(monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """NO_PROXY by address, by network, or altogether."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", left_out)
    with serving(lambda _: GOOD) as hub:
        assert body(ask(hub.url)) == b"data"


@pytest.mark.parametrize(
    "proxy", ["socks5://me:pa55word@127.0.0.1:1", "https://127.0.0.1:1", "http://", "http://a:b:c"]
)
def test_a_proxy_that_cannot_be_spoken_to_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """In words that say which there may be."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(Refused, match="name one in HTTPS_PROXY") as refusal:
        body(ask("https://hub-9.example"))
    assert "pa55word" not in str(refusal.value)


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the hub that is away; and its password is nobody's business."""
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:pa55word@127.0.0.1:{port}")
    with pytest.raises(Unavailable, match=f"no connection to the proxy 127.0.0.1:{port}") as error:
        body(ask("https://hub-10.example"))
    assert "pa55word" not in str(error.value)


def test_from_outside_nobody_is_led_inwards_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub behind a proxy sends us to an address of this machine, which the proxy is not asked for."""
    with serving(lambda _: GOOD) as inside, serving(lambda _: to(f"{inside.url}/col/delete")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(Refused, match="loopback address, where no public server may lead"):
            body(ask("http://hub-11.example/a"))
    assert inside.asked == []


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.2."]
)
def test_nor_is_the_proxy_led_inwards(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """It may run on this machine, and reads each spelling of its address as whoever connects does."""
    with serving(lambda _: to(f"http://{host}:9333/col/delete")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(Refused, match="loopback address, where no public server may lead"):
            body(ask(f"http://hub-of.{host.rstrip('.')}.example/a"))
    assert proxy.paths == [f"http://hub-of.{host.rstrip('.')}.example/a"]


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    found = trustme.CA()
    found.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    wire._context.cache_clear()
    yield found
    wire._context.cache_clear()


def tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_out_of_tls_nobody_is_led(authority: trustme.CA) -> None:
    """On the hub's own name neither: the token would go over the network in the clear."""
    with (
        serving(lambda _: GOOD) as plain,
        serving(lambda _: to(plain.url), tls=tls(authority, "127.0.0.1")) as hub,
        pytest.raises(Refused, match="https to http"),
    ):
        body(ask(hub.url.replace("http:", "https:")))
    assert plain.asked == []
    assert tokens(hub) == [TOKEN]


def test_a_certificate_of_nobodys_is_final(authority: trustme.CA) -> None:
    """Trying again does not help: the error says where one's own authority is named."""
    with (
        serving(lambda _: GOOD, tls=tls(trustme.CA(), "127.0.0.1")) as hub,
        pytest.raises(Refused, match="SSL_CERT_FILE"),
    ):
        body(ask(hub.url.replace("http:", "https:")))
    with (
        serving(lambda _: GOOD, tls=tls(authority, "other-13.example")) as hub,
        pytest.raises(Refused, match="SSL_CERT_FILE"),
    ):
        body(ask(hub.url.replace("http:", "https:")))


def relay(port: int, tunnel: socket.socket) -> None:
    """Bytes both ways until either end has enough."""
    with socket.create_connection(("127.0.0.1", port)) as there:
        back = threading.Thread(target=carry, args=(there, tunnel), daemon=True)
        back.start()
        carry(tunnel, there)
        back.join()


def carry(source: socket.socket, goal: socket.socket) -> None:
    try:
        while piece := source.recv(1 << 16):
            goal.sendall(piece)
        goal.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other end has gone


def test_a_proxy_leads_to_tls(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears the host and its login, and neither path nor token; without the login it says so."""
    login = "Basic bWU6cGE1NXdvcmQ="

    def lead(asked: Asked) -> Said:
        return Said(200 if asked.headers.get("proxy-authorization") == login else 407)

    with serving(lambda _: GOOD, tls=tls(authority, "hub-14.example")) as hub:
        port = int(hub.address.rpartition(":")[2])
        with serving(lead, tunnel=lambda tunnel: relay(port, tunnel)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:pa55word@{proxy.address}")
            assert body(ask("https://hub-14.example/a")) == b"data"
            monkeypatch.setenv("HTTPS_PROXY", proxy.address)
            with pytest.raises(Refused, match="wants a login"):
                body(ask("https://other-14.example/a"))
    assert proxy.paths == ["hub-14.example:443", "other-14.example:443"]
    assert "authorization" not in proxy.asked[0].headers
    assert (tokens(hub), hub.paths) == ([TOKEN], ["/a"])
    assert "proxy-authorization" not in hub.asked[0].headers


# --- Bodies ---------------------------------------------------------------------------------------------------------


def part(asked: Ask, start: int = 0, size: int = 4) -> bytes:
    buffer = bytearray(size)
    with fetched(asked) as reply:
        reply.fill(start, memoryview(buffer))
    return bytes(buffer)


def chunked(*chunks: bytes) -> Said:
    sent = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return Said(headers={"Transfer-Encoding": "chunked"}, body=sent, as_it_is=True)


@pytest.mark.parametrize(
    ("said", "start"),
    [
        (Said(206, {"Content-Range": "bytes 0-3/9"}, b"data"), 0),
        (Said(206, {"Content-Range": "bytes 2-5/*"}, b"data"), 2),
        (Said(206, {}, b"data"), 2),
        (Said(200, {}, b"data"), 0),
        (Said(200, {}, b"data and more"), 0),
        (Said(200, {"Content-Range": "bytes 2-5/9"}, b"data"), 2),
        (Said(200, {}, b"data", as_it_is=True), 0),
        (chunked(b"da", b"ta", b""), 0),
        (chunked(b"da", b"ta and more", b""), 0),
    ],
)
def test_a_part_is_what_was_asked_for(said: Said, start: int) -> None:
    """With a range or the beginning of the whole, with a length or without, under 206 or 200."""
    with serving(lambda _: said) as hub:
        assert part(ask(hub.url), start) == b"data"
        assert part(ask(hub.url), start) == b"data"


@pytest.mark.parametrize(
    ("said", "start", "error", "words"),
    [
        (Said(200, {}, b"whole data"), 2, Refused, "whole files only, no ranges"),
        (Said(206, {"Content-Range": "bytes 0-3/9"}, b"data"), 2, Unavailable, "it sent bytes 0-3/9 where bytes 2-5"),
        (Said(200, {"Content-Range": "bytes 0-3/9"}, b"data"), 2, Unavailable, "it sent bytes 0-3/9"),
        (Said(206, {"Content-Range": "bytes 2-3/4"}, b"da"), 2, Unavailable, "it sent bytes 2-3/4"),
        (Said(206, {"Content-Range": "0-3"}, b"data"), 0, Unavailable, "it sent 0-3"),
        (
            Said(206, {"Content-Type": "multipart/byteranges; boundary=x"}, b"--x data"),
            0,
            Unavailable,
            "several ranges",
        ),
        (Said(200, {"Content-Encoding": "gzip"}, b"data"), 0, Refused, "turn compression off"),
        (Said(206, {}, b"da"), 0, Unavailable, "2 bytes were announced where 4"),
        (Said(200, {}, b"da", as_it_is=True), 0, Unavailable, "broke off after 2 of 4"),
        (Said(200, {"Content-Length": "4"}, b"da", as_it_is=True), 0, Unavailable, "broke off after 2 of 4"),
        (chunked(b"da", b""), 0, Unavailable, "broke off after 2 of 4"),
        (Said(200, {"Transfer-Encoding": "chunked"}, b"4\r\nda", as_it_is=True), 0, Unavailable, "IncompleteRead"),
        (Said(200, {"Transfer-Encoding": "chunked"}, b"xyz", as_it_is=True), 0, Unavailable, "did not send the file"),
    ],
)
def test_other_bytes_are_no_part(said: Said, start: int, error: type[Exception], words: str) -> None:
    """What would give wrong bytes or none is told, with the host, and whether trying again may help."""
    with serving(lambda _: said) as hub, pytest.raises(error, match=words) as raised:
        part(ask(hub.url), start)
    assert hub.address in str(raised.value)


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "1000000"}, {"Transfer-Encoding": "chunked"}])
@pytest.mark.parametrize("take", [body, part])
def test_a_body_that_trickles_is_given_up(headers: dict[str, str], take: Callable[[Ask], bytes]) -> None:
    """With a length or without: bytes that come one at a time, for ever, are as bad as none."""
    with serving(lambda _: Said(200, headers, as_it_is=True, trickles=True)) as hub:
        whole = ask(hub.url, stall_seconds=0.2)
        with pytest.raises(Unavailable, match=r"only \d+ bytes came in"):
            take(whole) if take is body else part(whole, size=1_000_000)


def test_a_server_that_says_nothing_is_given_up() -> None:
    """It takes the connection, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"{address} did not send the file"):
            body(ask(f"http://{address}", stall_seconds=0.1))


@pytest.mark.parametrize(
    ("before", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: x\r\n"),
    ],
    ids=["interim answers", "a header", "a chunk's length", "trailers"],
)
def test_whatever_trickles_is_given_up(before: bytes, again: bytes) -> None:
    """Not bodies alone: before them, between their chunks and behind them a server can keep us for ever as well."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def trickle() -> None:
            connection, _ = other.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(before)
                connection.settimeout(0.01)
                while True:
                    connection.sendall(again)
                    with suppress(TimeoutError):
                        if not connection.recv(1):
                            return

        threading.Thread(target=trickle, daemon=True).start()
        with pytest.raises(Unavailable, match=r"only \d+ bytes came in"):
            body(ask(f"http://127.0.0.1:{other.getsockname()[1]}", stall_seconds=0.2))


@pytest.mark.parametrize(
    ("before", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;%s\r\nx\r\n" % (b"x" * 60_000)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n0\r\n", b"X: x\r\n"),
    ],
    ids=["interim answers", "hints", "chunks' extensions", "trailers"],
)
@pytest.mark.parametrize("take", [body, part])
def test_a_flood_of_what_is_no_body_is_given_up(before: bytes, again: bytes, take: Callable[[Ask], bytes]) -> None:
    """As fast as it may come: a part of it that is bytes of the file, or none, is no reason to read it for ever."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def flood() -> None:
            connection, _ = other.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(before)
                while True:
                    connection.sendall(again * 1000)

        threading.Thread(target=flood, daemon=True).start()
        whole = ask(f"http://127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(Unavailable, match="bytes came that are no body"):
            take(whole) if take is body else part(whole, size=1_000_000)


@pytest.mark.parametrize("interim", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_an_interim_answer_is_not_the_answer(interim: str) -> None:
    """Caches send hints before what was asked for, and slow servers that they are still at it."""
    before = f"HTTP/1.1 {interim}\r\nLink: </a>; rel=preload\r\n\r\n".encode()
    with serving(lambda _: GOOD, before=before) as hub:
        assert [body(ask(hub.url)) for _ in range(2)] == [b"data"] * 2


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00" * 100, b""])
def test_a_server_that_speaks_something_else_is_told(said: bytes) -> None:
    """What it says is shown in one short line at most."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def say() -> None:
            connection, _ = other.accept()
            connection.recv(1 << 16)
            connection.sendall(said)
            connection.close()

        threading.Thread(target=say, daemon=True).start()
        with pytest.raises(Unavailable, match="did not send the file") as error:
            body(ask(f"http://127.0.0.1:{other.getsockname()[1]}"))
        assert str(error.value).isprintable()
        assert error.value.__cause__ is None


def test_a_connection_that_was_idle_for_too_long_is_made_anew() -> None:
    """The server has closed it meanwhile: nobody's fault, and no error."""
    with serving(lambda _: Said(headers={"Connection": "keep-alive"}, body=b"data", hangs_up=True)) as hub:
        assert [body(ask(hub.url)) for _ in range(3)] == [b"data"] * 3
