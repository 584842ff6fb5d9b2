"""What users see of a real HAProxy while releases come, go and die behind it."""

import json
import os
import re
import socket
import ssl
import stat
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trustme

from blocks.errors import Refused, Unavailable
from blocks.haproxy.gateway import HAProxyGateway
from blocks.local.processes import free_port
from blocks.ports.gateway import WHOLE, Slot, Split
from blocks.replica_tls import new_authority, new_identity, release_key
from deployments.haproxy.config import (
    GatewaySettings,
    OutsideProvider,
    check_configuration,
    command,
    write_configuration,
)
from deployments.haproxy.reload import reload
from tests.gateway.replica import Replica
from tests.gateway.running import Load, RunningGateway, running_gateway, wait_until
from tests.servers import serving_context

pytestmark = pytest.mark.server

KEY_VARIABLE = "SKYFERRY_TEST_OUTSIDE_KEY"

NOW = datetime.now(UTC)
AUTHORITY = new_authority(NOW)
KEY = release_key(AUTHORITY, "chat-1a2b3c4d")


def attach(gateway: RunningGateway, slot: Slot, replica: Replica) -> None:
    gateway.by_socket.attach("chat", slot, replica.address, is_tls=False)
    wait_until_up(gateway, slot, replica)


def wait_until_up(gateway: RunningGateway, slot: Slot, replica: Replica) -> None:
    wait_until(f"{replica.name} is up", lambda: (slot, replica.address, "up") in servers(gateway))


def servers(gateway: RunningGateway) -> set[tuple[str, str, str]]:
    return gateway.servers()


def cursor(gateway: RunningGateway) -> str:
    return gateway.cursor()


def test_users_are_shared_out_as_asked(gateway: RunningGateway) -> None:
    """At 30 % about three in ten users get green, and the log says the same as the answers do."""
    gateway.by_socket.set_split("chat", Split(3000))
    start = cursor(gateway)
    with httpx.Client() as client:
        answers = Counter(
            client.post(gateway.url(), json={}, headers={"x-user-id": f"user-{n}"}).json()["from"] for n in range(1000)
        )
    # The users are always the same thousand, so this is no matter of luck.
    assert 250 <= answers["green"] <= 350
    assert Counter(outcome.slot for outcome in gateway.outcomes(start, 1000)) == answers


def test_users_without_a_name_are_shared_out_by_chance(gateway: RunningGateway) -> None:
    """At 50 % of 400 requests each slot gets a good part; one in 10^22 runs would see less than 100."""
    gateway.by_socket.set_split("chat", Split(5000))
    with httpx.Client() as client:
        answers = Counter(client.post(gateway.url(), json={}).json()["from"] for _ in range(400))
    assert min(answers["blue"], answers["green"]) > 100


def test_a_user_who_got_the_candidate_keeps_it(gateway: RunningGateway) -> None:
    """A user stays with a slot while the split stands, and a larger share only adds users."""

    def who_gets_green() -> set[int]:
        return {user for user in range(60) if gateway.ask(f"user-{user}").json()["from"] == "green"}

    gateway.by_socket.set_split("chat", Split(2000))
    first = who_gets_green()
    assert first == who_gets_green()
    gateway.by_socket.set_split("chat", Split(5000))
    assert first < who_gets_green()


@pytest.mark.parametrize("restart", ["reload", "kill"])
def test_split_and_servers_outlive_the_process(gateway: RunningGateway, blue: Replica, restart: str) -> None:
    """After a reload, or SIGKILL and a fresh start, the same share goes to the same servers, drained ones included."""
    gateway.by_tls.set_split("chat", Split(10_000))
    gateway.by_tls.drain("chat", "blue", blue.address)
    before = servers(gateway)
    if restart == "reload":
        gateway.reload()
    else:
        gateway.kill()
        write_configuration(gateway.settings)
        gateway.start()
    assert gateway.by_tls.split("chat") == Split(10_000)
    assert servers(gateway) == before
    assert gateway.ask().json()["from"] == "green"


@pytest.mark.parametrize(("dead", "share"), [("blue", 0), ("green", WHOLE)])
def test_the_other_slot_answers_for_a_dead_one(
    gateway: RunningGateway, blue: Replica, green: Replica, dead: str, share: int
) -> None:
    """Whichever slot is the candidate, its users get an answer, and the log says that it was not its own."""
    gateway.by_socket.set_split("chat", Split(share))
    start = cursor(gateway)
    (blue if dead == "blue" else green).stop()
    alive = "green" if dead == "blue" else "blue"
    assert [gateway.ask().json()["from"] for _ in range(3)] == [alive] * 3
    outcomes = gateway.outcomes(start, 3)
    # Three requests, three lines: the hop to the other slot is no request of its own.
    assert [(outcome.slot, outcome.address, outcome.by_fallback) for outcome in outcomes] == [(dead, None, True)] * 3


def test_nobody_left_is_an_error_that_clients_understand(
    gateway: RunningGateway, blue: Replica, green: Replica
) -> None:
    """With both slots dead users get a 503 as OpenAI words it, and the log blames the slot that they were sent to."""
    blue.stop()
    green.stop()
    start = cursor(gateway)
    answer = gateway.ask()
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
    assert answer.json()["error"]["type"] == "server_error"
    assert not [name for name in answer.headers if "skyferry" in name]
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.slot, outcome.address, outcome.status, outcome.by_fallback) == ("blue", None, 503, False)


def test_a_user_cannot_pose_as_the_hop(gateway: RunningGateway, blue: Replica) -> None:
    """The mark that a request was sent on already is taken off what users send."""
    blue.stop()
    assert gateway.ask(headers={"x-skyferry-hop": "1"}).json()["from"] == "green"


def test_a_dead_slot_takes_its_users_back_by_itself(gateway: RunningGateway, blue: Replica) -> None:
    """A replica that is well again gets its traffic within a few checks."""
    blue.is_healthy = False
    wait_until("blue is down", lambda: ("blue", blue.address, "down") in servers(gateway))
    assert gateway.ask().json()["from"] == "green"
    blue.is_healthy = True
    wait_until("blue is back", lambda: gateway.ask().json()["from"] == "blue")


def test_a_replica_that_is_not_well_yet_gets_nothing(gateway: RunningGateway, blue: Replica) -> None:
    """From the moment it is attached until its first health check has passed, users go elsewhere."""
    with Replica("loading") as loading:
        loading.is_healthy = False
        for _ in range(5):
            gateway.by_socket.attach("chat", "blue", loading.address, is_tls=False)
            assert {gateway.ask().json()["from"] for _ in range(4)} == {blue.name}
            gateway.by_socket.detach("chat", "blue", loading.address)
        loading.is_healthy = True
        attach(gateway, "blue", loading)
        wait_until("it takes part", lambda: gateway.ask().json()["from"] == "loading")


def test_the_outside_provider_gets_its_own_key_and_nobody_elses(tmp_path: Path) -> None:
    """With both slots empty the provider answers; it sees its key, and of the user no key, cookie or name."""
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "outside-ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    with Replica("outside", tls=context) as provider:
        outside = OutsideProvider(host="localhost", port=provider.port, key_variable=KEY_VARIABLE, ca_file=ca_file)
        with running_gateway(tmp_path / "run", outside, key="the-gateways-100%-own") as gateway:
            gateway.by_socket.set_key("chat", "blue", "the-replicas-own")
            start = cursor(gateway)
            answer = gateway.ask(
                "alice", headers={"authorization": "Bearer the-users", "cookie": "a=b", "x-api-key": "c"}
            )
            assert answer.json() == {"from": "outside"}
            (seen,) = provider.seen
            assert (seen["authorization"], seen["host"]) == ("Bearer the-gateways-100%-own", "localhost")
            assert seen.keys() == {
                *("authorization", "host", "accept", "accept-encoding", "content-type", "content-length")
            }
            (outcome,) = gateway.outcomes(start, 1)
            assert (outcome.slot, outcome.address, outcome.by_fallback) == ("blue", None, True)
            written = "".join(path.read_text() for path in gateway.settings.run_directory.iterdir() if path.is_file())
            assert "the-gateways-100%-own" not in written


def test_the_outside_provider_has_to_prove_who_it_is(tmp_path: Path) -> None:
    """A provider whose certificate is not vouched for gets nothing, and users get the 503."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "outside-ca.pem"
    trustme.CA().cert_pem.write_to_path(ca_file)
    with Replica("impostor", tls=context) as provider:
        outside = OutsideProvider(host="localhost", port=provider.port, key_variable=KEY_VARIABLE, ca_file=ca_file)
        with running_gateway(tmp_path / "run", outside, key="own") as gateway:
            assert gateway.ask().status_code == 503
            assert provider.seen == []


@pytest.fixture
def tls_gateway(tmp_path: Path) -> Iterator[tuple[RunningGateway, Replica]]:
    """With one replica that speaks TLS up in blue, which asks for a key."""
    context = serving_context(new_identity(AUTHORITY, NOW), tmp_path)
    with Replica("tls", context) as replica, running_gateway(tmp_path / "run", authority=AUTHORITY) as running:
        running.by_socket.attach("chat", "blue", replica.address, is_tls=True)
        running.by_socket.set_key("chat", "blue", KEY)
        wait_until("the replica is up", lambda: ("blue", replica.address, "up") in servers(running))
        yield running, replica


@pytest.mark.parametrize("restart", ["reload", "kill"])
def test_tls_and_keys_outlive_the_process(tls_gateway: tuple[RunningGateway, Replica], restart: str) -> None:
    """After a reload, or SIGKILL and a fresh start, the same replica gets the same key over TLS; others never do."""
    gateway, replica = tls_gateway
    if restart == "reload":
        gateway.reload()
    else:
        gateway.kill()
        write_configuration(gateway.settings)
        gateway.start()
    wait_until("the replica is up", lambda: ("blue", replica.address, "up") in servers(gateway))
    assert gateway.ask(headers={"authorization": "Bearer the-users", "x-api-key": "the-users"}).status_code == 200
    assert replica.seen[-1]["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in replica.seen[-1]


def test_a_key_is_kept_from_all_but_the_gateways_user(tls_gateway: tuple[RunningGateway, Replica]) -> None:
    """It stands in one file of mode 600, and neither in the configuration nor in a log."""
    gateway, _ = tls_gateway
    gateway.ask()
    run = gateway.settings.run_directory
    holders = {path.name for path in run.iterdir() if path.is_file() and KEY in path.read_text()}
    assert holders == {"keys.map"}
    assert stat.S_IMODE((run / "keys.map").stat().st_mode) == 0o600
    gateway.by_socket.requests("chat", None)
    assert KEY not in gateway.by_socket._ask("show events chat")


def test_a_slots_key_does_not_follow_its_users(
    tls_gateway: tuple[RunningGateway, Replica], blue: Replica, green: Replica
) -> None:
    """Where the other slot answers for a dead one, its replicas get its own key, or none."""
    gateway, dead = tls_gateway
    attach(gateway, "green", green)
    dead.stop()
    wait_until("blue is dead", lambda: ("blue", dead.address, "down") in servers(gateway))
    assert gateway.ask(headers={"authorization": "Bearer the-users"}).json() == {"from": "green"}
    gateway.by_socket.set_key("chat", "green", "of-green")
    assert gateway.ask(headers={"authorization": "Bearer the-users"}).json() == {"from": "green"}
    assert [seen.get("authorization") for seen in green.seen] == [None, "Bearer of-green"]
    assert blue.seen == []


def test_a_gateway_without_an_authority_speaks_no_tls(gateway: RunningGateway) -> None:
    """It says what it lacks, and nothing is attached."""
    before = servers(gateway)
    with pytest.raises(Refused, match="knows no authority that vouches for replicas; set replica_ca"):
        gateway.by_socket.attach("chat", "blue", "127.0.0.1:9", is_tls=True)
    assert servers(gateway) == before


def test_servers_that_an_older_skyferry_wrote_are_found_again(gateway: RunningGateway, blue: Replica) -> None:
    """Its lines did not say how servers are spoken to: it spoke plain HTTP only."""
    gateway.kill()
    file = gateway.settings.run_directory / "servers"
    file.write_text("".join(f"{line.rpartition(' ')[0]}\n" for line in file.read_text().splitlines() if line))
    assert file.read_text().startswith(f"chat-blue {blue.address} ready\n")
    gateway.start()
    wait_until("blue is up", lambda: ("blue", blue.address, "up") in servers(gateway))


def test_an_authority_that_went_missing_is_named(tls_gateway: tuple[RunningGateway, Replica]) -> None:
    """A gateway that has replicas with TLS does not start without their authority, and says so in its log."""
    gateway, _ = tls_gateway
    gateway.kill()
    write_configuration(replace(gateway.settings, replica_ca=None))
    process = gateway.daemon.start(command(gateway.settings.run_directory), env=gateway.env)
    assert process.wait(timeout=10) != 0
    assert "knows no authority that vouches for replicas; set replica_ca" in gateway.daemon.log_tail()


@pytest.mark.parametrize("services", [("chat",), ("a", "b")])
def test_no_port_is_shared(gateway: RunningGateway, tmp_path: Path, services: tuple[str, ...]) -> None:
    """Where another gateway or another of its services has the port, a gateway does not start, and names it."""
    address = gateway.settings.services.get(services[0], f"127.0.0.1:{free_port()}")
    write_configuration(GatewaySettings(tmp_path, services=dict.fromkeys(services, address)))
    ended = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=10, check=False)
    assert ended.returncode != 0
    assert f"cannot bind socket (Address already in use) for [{address}]" in ended.stderr


def test_a_reload_during_another_is_not_lost(gateway: RunningGateway) -> None:
    """What is written while the gateway reads its configuration stands once the reload that was asked for then is done.

    A file that is a pipe, which the gateway waits for, holds the first reload for as long as it takes.
    """
    run = gateway.settings.run_directory
    keys = run / "keys.map"
    keys.unlink()
    os.mkfifo(keys)
    with ThreadPoolExecutor(2) as askers:
        first = askers.submit(reload, run)
        with keys.open("w"):
            keys.unlink()
            services = {**gateway.settings.services, "late": f"127.0.0.1:{free_port()}"}
            write_configuration(replace(gateway.settings, services=services))
            second = askers.submit(reload, run)
        first.result()
        second.result()
    gateway.wait_for_one_worker()
    assert gateway.by_socket.split("late") == Split(0)


def test_what_is_said_during_a_reload_is_not_lost(gateway: RunningGateway, blue: Replica, green: Replica) -> None:
    """The old worker acts on it when the new one has already read what stood before, and the new one takes it over."""
    file = gateway.settings.run_directory / "servers"
    before = file.read_text()
    file.unlink()
    os.mkfifo(file)
    with ThreadPoolExecutor(1) as asker, Replica("third") as third:
        reloaded = asker.submit(reload, gateway.settings.run_directory)
        with file.open("w") as read_by_the_new_one:
            gateway.by_socket.set_split("chat", Split(3000))
            gateway.by_socket.set_key("chat", "blue", "new")
            gateway.by_socket.detach("chat", "blue", blue.address)
            gateway.by_socket.attach("chat", "blue", third.address, is_tls=False)
            gateway.by_socket.drain("chat", "green", green.address)
            read_by_the_new_one.write(before)
        reloaded.result()
        gateway.wait_for_one_worker()
        assert gateway.by_socket.split("chat") == Split(3000)
        assert servers(gateway) == {("blue", third.address, "up"), ("green", green.address, "draining")}
        assert gateway.ask().json()["from"] == "third"
        assert third.seen[-1]["authorization"] == "Bearer new"


def test_a_worker_that_has_been_replaced_confirms_nothing(gateway: RunningGateway) -> None:
    """Whoever speaks to it after the new one has begun is told to try again."""
    (gateway.settings.run_directory / "worker").write_text("another\n")
    with pytest.raises(Unavailable, match="to split: again the gateway has been reloaded just now"):
        gateway.by_socket.set_split("chat", Split(3000))
    gateway.reload()
    gateway.by_socket.set_split("chat", Split(3000))


def test_a_reload_that_fails_says_so(gateway: RunningGateway) -> None:
    """A port that is taken is named, users go on with what there was, and the next reload works."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        write_configuration(replace(gateway.settings, services={**gateway.settings.services, "late": address}))
        with pytest.raises(
            Refused, match=rf"goes on as it was; mend this and reload:\n.*cannot bind socket .* for \[{address}\]"
        ):
            reload(gateway.settings.run_directory)
        assert gateway.ask().json()["from"] == "blue"
    gateway.reload()
    assert gateway.by_socket.split("late") == Split(0)


def test_what_does_not_run_is_not_reloaded(tmp_path: Path) -> None:
    """It says where it looked for the gateway's master."""
    with pytest.raises(Unavailable, match=rf"no connection to the gateway's master at {tmp_path / 'master.sock'}"):
        reload(tmp_path, timeout_seconds=0.1)


def test_a_missing_key_is_named_before_the_gateway_starts(tmp_path: Path) -> None:
    """Without the provider's key in its environment the configuration is refused, and the variable named."""
    settings = GatewaySettings(tmp_path, outside=OutsideProvider(host="localhost", key_variable=KEY_VARIABLE))
    write_configuration(settings)
    with pytest.raises(Refused, match=KEY_VARIABLE):
        check_configuration(tmp_path, env={})


def test_no_certificate_no_admin(gateway: RunningGateway) -> None:
    """The admin address tells nothing in plain text, nothing without a certificate, nothing for another's."""
    host, port = (gateway.by_tls.admin_address or "").split(":")
    with socket.create_connection((host, int(port))) as plain:
        plain.sendall(b"show info\n")
        assert plain.recv(1000) == b""
    stranger = trustme.CA().issue_cert("flows@skyferry.test")
    own_ca = gateway.by_tls.ca_certificate
    context = ssl.create_default_context(cadata=own_ca)
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        tls.sendall(b"show info\n")
        with pytest.raises(ssl.SSLError):
            tls.recv(1000)
    block = HAProxyGateway(
        admin_address=gateway.by_tls.admin_address,
        client_certificate=stranger.cert_chain_pems[0].bytes().decode(),
        client_key=stranger.private_key_pem.bytes().decode(),  # pyright: ignore[reportArgumentType] - pydantic wraps it
        ca_certificate=own_ca,
    )
    with pytest.raises(Refused, match="certificates"):
        block.split("chat")


def test_a_gateway_that_is_gone_is_worth_another_try(gateway: RunningGateway) -> None:
    """Where nobody listens the error says where, and that trying again may help."""
    gateway.kill()
    for block in (gateway.by_socket, gateway.by_tls):
        with pytest.raises(Unavailable, match=str(block.admin_socket or block.admin_address)):
            block.split("chat")


def test_the_first_token_is_timed_and_not_the_headers(gateway: RunningGateway) -> None:
    """Of an answer whose headers come at once and whose tokens take their time, the log has the first token's time."""
    start = cursor(gateway)
    asked = time.perf_counter()
    with httpx.stream("POST", gateway.url(), json={"stream": True, "tokens": 3, "seconds_per_token": 0.2}) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        seen_ms = (time.perf_counter() - asked) * 1000
        list(chunks)
    (outcome,) = gateway.outcomes(start, 1)
    assert outcome.first_token_ms is not None
    assert 200 <= outcome.first_token_ms <= seen_ms + 1
    assert outcome.total_ms >= 600
    assert not outcome.cut_short


CHUNK = '{"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":%s,"finish_reason":%s}]}'
ROLE = CHUNK % ('{"role":"assistant","content":""}', "null")
LAST = CHUNK % ('{"content":""}', '"stop"')


def says(word: str) -> str:
    return CHUNK % (json.dumps({"content": word}), "null")


def stream(*events: str, end: str = "\n") -> str:
    return "".join(f"data: {event}{end}{end}" for event in events)


WORDS = stream(ROLE, says("data: one"), says("\n\ndata: two"), says("[DONE]"), says("four"), LAST, "[DONE]")
"""A role, four words, of which some look like what they are not, and an end: four tokens."""


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([WORDS], id="all in one piece"),
        pytest.param([WORDS[n : n + 37] for n in range(0, len(WORDS), 37)], id="cut anywhere"),
        pytest.param([WORDS.replace("\n", "\r\n")], id="other line ends"),
        pytest.param([": a comment\n\n" + WORDS.replace("data: ", "data:")], id="comments, and no blank"),
    ],
)
def test_each_event_of_a_stream_is_a_token_however_it_is_cut(gateway: RunningGateway, pieces: list[str]) -> None:
    """Neither the role before the first token nor the mark of the end is one."""
    start = cursor(gateway)
    body = gateway.ask(pieces=pieces, type="text/event-stream", seconds_per_piece=0.005).text
    assert body == "".join(pieces)
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.tokens, outcome.is_empty, outcome.cut_short) == (4, False, False)
    assert outcome.first_token_ms is not None


def test_time_per_token_is_what_lies_between_the_first_and_the_last(gateway: RunningGateway) -> None:
    """Of seven tokens 50 ms apart it is about 50 ms, whatever came before the first; of three there is none."""
    start = cursor(gateway)
    gateway.ask(
        pieces=["", "", "", "", *map(stream, map(says, "abcdefg"))], type="text/event-stream", seconds_per_piece=0.05
    )
    gateway.ask(pieces=[stream(*map(says, "abc"))], type="text/event-stream")
    first, second = gateway.outcomes(start, 2)
    assert first.tokens == 7
    assert first.first_token_ms is not None
    assert first.per_token_ms is not None
    assert first.first_token_ms >= 200
    assert 50 <= first.per_token_ms <= (first.total_ms - first.first_token_ms) / 6 + 1
    assert (second.tokens, second.per_token_ms) == (3, None)


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_what_is_packed_is_no_good_answer(gateway: RunningGateway, kind: str) -> None:
    """Nobody asks a replica to pack, and behind it could be any error; it reaches the user as it is."""
    start = cursor(gateway)
    for encoding in ("zstd", "GZIP", "x, gzip"):
        asked = {"pieces": ["x", "y"], "type": kind, "encoding": encoding}
        with httpx.stream("POST", gateway.url(), json=asked) as answer:
            assert b"".join(answer.iter_raw()) == b"xy"
    gateway.ask(path="/v1/embeddings", pieces=["x"], type=kind, encoding="br")
    *chats, embedding = gateway.outcomes(start, 4)
    assert [(outcome.cut_short, outcome.is_empty) for outcome in chats] == [(True, False)] * 3
    assert not embedding.cut_short


def test_what_is_called_unpacked_is_looked_into(gateway: RunningGateway) -> None:
    """With such a header no error hides."""
    start = cursor(gateway)
    for body in (stream(says("so"), "[DONE]"), stream(says("so"), '{"error":{"code":500}}')):
        gateway.ask(pieces=[body], type="text/event-stream", encoding="Identity")
    good, bad = gateway.outcomes(start, 2)
    assert (good.cut_short, good.tokens) == (False, 1)
    assert (bad.cut_short, bad.error_status) == (True, 500)


def test_a_line_without_an_end_is_let_through(gateway: RunningGateway) -> None:
    """It is longer than what the gateway keeps, counts once it ends, and reaches the user whole."""
    start = cursor(gateway)
    body = stream(says("x" * 300_000), says("so"), LAST)
    assert gateway.ask(pieces=[body], type="text/event-stream").text == body
    (outcome,) = gateway.outcomes(start, 1)
    assert outcome.tokens == 2


def test_no_token_is_counted_twice_for_a_user_who_reads_slowly(gateway: RunningGateway) -> None:
    """The gateway waits for the user again and again in the middle of events, and goes on where it was."""
    start = cursor(gateway)
    body = stream(*(says("x" * 500) for _ in range(2000)))
    narrow = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)])
    with httpx.Client(transport=narrow, timeout=30) as user:
        assert user.post(gateway.url(), json={"pieces": [body], "type": "text/event-stream"}).text == body
    (outcome,) = gateway.outcomes(start, 1)
    assert outcome.tokens == 2000


def test_a_user_who_reads_slowly_makes_no_replica_slow(gateway: RunningGateway) -> None:
    """Once they are far behind, the replica waits as well, and its tokens are not timed; the first one is."""
    start = cursor(gateway)
    body = stream(*(says("x" * 4000) for _ in range(3000)), "[DONE]")
    narrow = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)])
    with (
        httpx.Client(transport=narrow, timeout=30) as user,
        user.stream("POST", gateway.url(), json={"pieces": [body], "type": "text/event-stream"}) as answer,
    ):
        wait_until("the gateway is as full as it can be", lambda: backlog(gateway) > 200_000)
        assert sum(map(len, answer.iter_raw())) == len(body)
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.tokens, outcome.per_token_ms, outcome.cut_short) == (3000, None, False)
    assert outcome.first_token_ms is not None


def test_an_answer_that_breaks_off_is_told_from_a_good_one(gateway: RunningGateway) -> None:
    """A replica that dies in the middle of an answer is logged as having cut it short, with its address."""
    start = cursor(gateway)
    with pytest.raises(httpx.RemoteProtocolError):
        gateway.ask(stream=True, tokens=3, seconds_per_token=0.02, cut_after=2)
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.cut_short, outcome.user_left, outcome.status) == (True, False, 200)
    assert (outcome.address is not None, outcome.tokens, outcome.is_empty) == (True, 2, False)


def test_a_user_who_leaves_is_no_failure_of_the_replica(gateway: RunningGateway, blue: Replica) -> None:
    """Leaving in the middle, and leaving before the answer, are both logged as the user's doing."""
    start = cursor(gateway)
    with httpx.stream("POST", gateway.url(), json={"stream": True, "tokens": 500, "seconds_per_token": 0.02}) as answer:
        next(answer.iter_raw())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(gateway.url(), json={"wait_for_release": True}, timeout=0.2)
    blue.release.set()
    outcomes = gateway.outcomes(start, 2)
    assert [(outcome.user_left, outcome.cut_short, outcome.status) for outcome in outcomes] == [
        (True, False, 200),
        (True, False, -1),
    ]
    assert not any(outcome.is_empty for outcome in outcomes)


class Caller:
    """A user word for word, on a connection of their own."""

    def __init__(
        self,
        gateway: RunningGateway,
        body: bytes,
        *,
        length: int | None = None,
        version: str = "1.1",
        headers: str = "",
    ) -> None:
        host, port = gateway.settings.services["chat"].split(":")
        self.connection = socket.create_connection((host, int(port)))
        self.connection.settimeout(10)
        line = f"POST /v1/chat/completions HTTP/{version}\r\n"
        head = f"{line}host: chat\r\ncontent-length: {length or len(body)}\r\n{headers}\r\n"
        self.connection.sendall(head.encode() + body)

    def hear(self, tokens: int) -> None:
        heard = b""
        while b"\r\n\r\n" not in heard or heard.count(b"data: ") < tokens:
            heard += self.connection.recv(1 << 16)

    def close(self) -> None:
        self.connection.close()

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def say_no_more(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [Caller.close, Caller.reset, Caller.say_no_more])
def test_a_user_who_leaves_an_answer_without_a_length_has_left(
    gateway: RunningGateway, leave: Callable[[Caller], None]
) -> None:
    """Such as HTTP/1.0 gets, by which many a proxy asks: the replica has cut nothing short, and HAProxy sees no end."""
    start = cursor(gateway)
    pieces = [stream(says("so")), *([": still here\n\n"] * 200)]
    user = Caller(gateway, json.dumps({"pieces": pieces, "type": "text/event-stream"}).encode(), version="1.0")
    user.hear(1)
    leave(user)
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.user_left, outcome.cut_short, outcome.status, outcome.tokens) == (True, False, 200, 1)
    user.close()


def test_a_user_who_leaves_half_an_answer_has_left(gateway: RunningGateway) -> None:
    """Of an answer in one piece that tells no length, half is no broken one."""
    start = cursor(gateway)
    pieces = ['{"choices":[', *([" "] * 200), "]}"]
    asked = {"pieces": pieces, "type": "application/json", "without_length": True}
    user = Caller(gateway, json.dumps(asked).encode(), version="1.0")
    user.hear(0)
    user.connection.recv(1)
    user.close()
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.user_left, outcome.cut_short, outcome.is_empty, outcome.status) == (True, False, False, 200)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("status", "kind"), [(400, "application/json"), (200, "application/json"), (200, "text/event-stream")]
)
def test_who_sends_a_long_request_stays_for_the_answer(
    gateway: RunningGateway, version: str, status: int, kind: str
) -> None:
    """A refusal, a broken answer and a stream that is cut all count."""
    start = cursor(gateway)
    asked = {"status": 400} if status == 400 else {"pieces": ['{"choices":['], "type": kind, "without_length": True}
    user = Caller(gateway, json.dumps({**asked, "prompt": "x" * 600_000}).encode(), version=version)
    while user.connection.recv(1 << 16) and status != 400:
        pass
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.user_left, outcome.status, outcome.cut_short) == (False, status, status == 200)
    user.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_without_a_length_may_be_cut_short_all_the_same(gateway: RunningGateway, version: str) -> None:
    """Where the replica ends the connection, and the user is still there."""
    start = cursor(gateway)
    event_stream, in_one_piece = "text/event-stream", "application/json"
    for kind, said in (
        (event_stream, stream(says("so"))),
        (event_stream, stream(says("so"), "[DONE]")),
        (in_one_piece, '{"choices":['),
        (in_one_piece, '{"choices":[]}'),
    ):
        asked = {"pieces": [said], "type": kind, "without_length": True}
        user = Caller(gateway, json.dumps(asked).encode(), version=version, headers="connection: close\r\n")
        while user.connection.recv(1 << 16):
            pass
        user.close()
    told = [(outcome.user_left, outcome.cut_short, outcome.is_empty) for outcome in gateway.outcomes(start, 4)]
    assert told == [(False, True, False), (False, False, False), (False, True, False), (False, False, True)]


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("leave", [Caller.close, Caller.reset, Caller.say_no_more])
def test_a_user_who_leaves_a_stream_that_stalls_is_seen_at_once(
    gateway: RunningGateway, blue: Replica, leave: Callable[[Caller], None], tokens: int
) -> None:
    """However they leave, and while the replica says nothing: the log tells how far the answer had come."""
    start = cursor(gateway)
    user = Caller(gateway, json.dumps({"stream": True, "tokens": 10, "stall_after": tokens}).encode())
    user.hear(tokens)
    leave(user)
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.user_left, outcome.status, outcome.tokens) == (True, 200, tokens)
    assert (outcome.cut_short, outcome.is_empty) == (False, False)
    blue.release.set()
    user.close()


def test_a_user_who_goes_once_it_is_over_has_not_left(gateway: RunningGateway) -> None:
    """Some hang up at the mark of the end, which is before the connection says that it is over."""
    start = cursor(gateway)
    body = {"pieces": [stream(says("so"), "[DONE]"), ": a word more\n\n"], "type": "text/event-stream"}
    user = Caller(gateway, json.dumps({**body, "seconds_per_piece": 0.2}).encode())
    user.hear(2)
    user.reset()
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.user_left, outcome.cut_short, outcome.tokens) == (False, False, 1)


SLOWLY = {"stream": True, "tokens": 2}


@pytest.mark.parametrize("size", [100_000, 400_000])
def test_what_a_user_takes_to_ask_is_not_the_replicas_time(gateway: RunningGateway, size: int) -> None:
    """Of a request that fits into the gateway's memory and of one that passes through while it comes."""
    start = cursor(gateway)
    body = json.dumps({**SLOWLY, "prompt": "x" * size}).encode()
    user = Caller(gateway, body[:1000], length=len(body))
    for part in (body[1000 : size // 2], body[size // 2 : -9], body[-9:]):
        time.sleep(0.15)
        user.connection.sendall(part)
    user.hear(2)
    user.close()
    (outcome,) = gateway.outcomes(start, 1)
    assert outcome.first_token_ms is not None
    assert outcome.first_token_ms < 300
    assert outcome.total_ms > 440


def backlog(gateway: RunningGateway) -> int:
    """Bytes of an answer that the gateway has and its user has yet to take."""
    found = re.findall(r" o=(\d+) p=\d+ i=(\d+)", gateway.by_socket._ask("show sess all"))
    return max((sum(map(int, parts)) for parts in found), default=0)


def waiting(gateway: RunningGateway) -> int:
    (line,) = (
        line for line in gateway.by_socket._ask("show stat").splitlines() if line.startswith("chat-blue,BACKEND,")
    )
    return int(line.split(",")[2])


@pytest.mark.parametrize("size", [10, 400_000])
def test_what_a_request_waits_for_a_replica_is_the_releases_time(
    gateway: RunningGateway, blue: Replica, size: int
) -> None:
    """Where all its replicas are as busy as they may be, users wait at the gateway."""
    gateway.by_socket._ask("set maxconn server chat-blue/r1 1")
    with ThreadPoolExecutor(1) as busy:
        held = busy.submit(gateway.ask, wait_for_release=True)
        wait_until("it is busy", lambda: len(blue.seen) == 1)
        start = cursor(gateway)
        body = json.dumps({**SLOWLY, "prompt": "x" * size}).encode()
        user = Caller(gateway, body[:300_000], length=len(body))
        wait_until("it waits", lambda: waiting(gateway) == 1)
        time.sleep(0.4)
        blue.release.set()
        held.result()
        user.connection.sendall(body[300_000:])
        user.hear(2)
        user.close()
    *_, outcome = gateway.outcomes(start, 2)
    assert outcome.first_token_ms is not None
    assert 400 <= outcome.first_token_ms < 2000


@pytest.mark.parametrize(
    ("count", "is_repeat"),
    [(None, False), ("0", False), ("1", True), ("2", True), ("x", False), ("-1", False), ("", False)],
)
def test_a_request_that_an_sdk_sends_again_is_known(
    gateway: RunningGateway, count: str | None, *, is_repeat: bool
) -> None:
    """By the header that OpenAI's and Anthropic's clients count in; whatever else stands there counts for nothing."""
    start = cursor(gateway)
    gateway.ask(headers={} if count is None else {"x-stainless-retry-count": count})
    (outcome,) = gateway.outcomes(start, 1)
    assert outcome.is_repeat == is_repeat


def salt(gateway: RunningGateway) -> str:
    lines = dict(line.split(" ") for line in (gateway.settings.run_directory / "split.map").read_text().splitlines())
    return lines["chat.salt"]


def test_nobody_can_tell_on_which_side_a_user_is(gateway: RunningGateway) -> None:
    """The salt is of 128 random bits, is another in each release, and is for the gateway's user alone."""
    salts = set()
    for _ in range(3):
        gateway.by_socket.set_split("chat", Split(500))
        salts.add(salt(gateway))
        gateway.by_socket.set_split("chat", Split(5000))
        assert salt(gateway) in salts
        gateway.by_socket.set_split("chat", Split(0))
    assert len(salts) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in salts)
    assert stat.S_IMODE((gateway.settings.run_directory / "split.map").stat().st_mode) == 0o600


def test_a_release_that_began_with_an_older_salt_goes_on_with_its_users(gateway: RunningGateway) -> None:
    """Where the gateway is configured anew in the middle of it, each stays where an older Skyferry has put them."""
    gateway.kill()
    file = gateway.settings.run_directory / "split.map"
    file.write_text("chat 3000\nchat.salt 7\n")
    gateway.start()
    wait_until("both are up", lambda: [state for _, _, state in servers(gateway)] == ["up", "up"])
    green = [n for n in range(40) if gateway.ask(f"user-{n}").json()["from"] == "green"]
    assert green == [0, 1, 2, 6, 8, 12, 13, 16, 17, 18, 19, 21, 26, 27, 29, 30, 32, 38]
    gateway.by_socket.set_split("chat", Split(4000))
    assert salt(gateway) == "7"
    gateway.by_socket.set_split("chat", Split(0))
    gateway.by_socket.set_split("chat", Split(3000))
    assert len(salt(gateway)) == 32


def test_other_users_come_first_in_each_release(gateway: RunningGateway) -> None:
    """Within one release a larger share only adds users, also over a reload and a restart; the next draws anew."""
    users = [f"user-{number}" for number in range(60)]

    def in_green(share: int) -> set[str]:
        gateway.by_socket.set_split("chat", Split(share))
        return {user for user in users if gateway.ask(user).json()["from"] == "green"}

    first = in_green(3000)
    assert 0 < len(first) < len(users)
    assert first <= in_green(5000)
    gateway.reload()
    wait_until("green is up", lambda: [state for slot, _, state in servers(gateway) if slot == "green"] == ["up"])
    assert in_green(3000) == first
    gateway.kill()
    gateway.start()
    wait_until("both are up", lambda: [state for _, _, state in servers(gateway)] == ["up", "up"])
    assert in_green(3000) == first
    for end in (0, WHOLE):
        gateway.by_socket.set_split("chat", Split(end))
        following = in_green(3000)
        assert following != first
        first = following


def test_the_log_knows_users_only_by_a_hash(gateway: RunningGateway) -> None:
    """The same user has the same hash, another has another, and neither name nor prompt is in the log."""
    start = cursor(gateway)
    for user in ("alice@example.org", "alice@example.org", "bob@example.org", None):
        gateway.ask(user, prompt="a secret")
    first, again, other, nameless = (outcome.user for outcome in gateway.outcomes(start, 4))
    assert first == again != other
    assert nameless is None
    log = gateway.by_socket._ask("show events chat")
    assert all(word not in log for word in ("alice", "secret"))
    assert len([json.loads(line) for line in log.splitlines() if line]) == 4


def test_errors_of_a_replica_reach_the_log_as_they_are(gateway: RunningGateway) -> None:
    """A 500 is not sent again elsewhere: a gate has to see it."""
    start = cursor(gateway)
    assert gateway.ask(status=500).status_code == 500
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.status, outcome.retried, outcome.first_token_ms) == (500, False, None)


def test_nothing_is_lost_while_releases_move(gateway: RunningGateway, blue: Replica) -> None:
    """Share changes, drains, detaching and attaching, and reloads cost no user an answer."""
    with Load(gateway.url()) as load:
        for _ in range(3):
            for share in (500, 1500, 3000, 5000, WHOLE):
                gateway.by_socket.set_split("chat", Split(share))
                load.goes_on(20)
            gateway.by_socket.drain("chat", "blue", blue.address)
            load.goes_on(20)
            gateway.by_socket.detach("chat", "blue", blue.address)
            load.goes_on(20)
            attach(gateway, "blue", blue)
            gateway.by_socket.set_split("chat", Split(0))
            gateway.reload()
            load.goes_on(20)
    assert Counter(load.answers) == {200: len(load.answers)}


def test_a_killed_candidate_costs_nobody_an_answer(gateway: RunningGateway, green: Replica) -> None:
    """The candidate dies under load, and every request that had not begun its answer is answered by stable."""
    gateway.by_socket.set_split("chat", Split(WHOLE))
    start = cursor(gateway)
    with Load(gateway.url()) as load:
        load.goes_on()
        green.stop()
        load.goes_on()
    outcomes = gateway.outcomes(start, len(load.answers))
    # What it had begun to answer when it died is cut, is logged as cut, and cannot be answered by anybody else.
    assert Counter(load.answers)[200] == len(load.answers) - sum(outcome.cut_short for outcome in outcomes)
    assert any(outcome.retried for outcome in outcomes)
    assert outcomes[-1].by_fallback
