"""What every gateway keeps to: the one in memory, and HAProxy by unix socket and by mutual TLS."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Refused
from blocks.ports.gateway import Gateway, Outcome, Slot, Split
from blocks.replica_tls import new_authority, new_identity
from flows.policy.gating.outcomes import has_failed
from tests.fakes.gateway import FakeGateway
from tests.gateway.replica import Replica
from tests.gateway.running import RunningGateway, running_gateway, wait_until
from tests.servers import serving_context

NOW = datetime.now(UTC)
AUTHORITY = new_authority(NOW)
USERS_OWN = "Bearer of-the-user"


@dataclass(frozen=True)
class Case:
    """A gateway with the services chat and embed, and how the world acts on it."""

    gateway: Gateway
    address: str
    """Where a healthy replica answers in plain HTTP."""
    tls_address: str
    """Where one answers by TLS that the gateway's authority vouches for."""
    stranger: str
    """Where one answers by TLS that another authority vouches for."""
    ask: Callable[[], None]
    """A user of chat asks, and the answer is logged; a replica in blue has to be up."""
    stream: Callable[[int], None]
    """The same, of an answer that is streamed and has so many tokens."""
    heard: Callable[[], str | None]
    """What came to a replica as the authorization of the last request; the user's own is USERS_OWN."""
    hold: Callable[[], AbstractContextManager[None]]
    """A request to that replica in blue is in flight for as long as the block lasts."""
    restart: Callable[[], None]

    def attach(self, *, is_tls: bool = False) -> None:
        self.gateway.attach("chat", "blue", self.tls_address if is_tls else self.address, is_tls=is_tls)
        wait_until("the replica is up", lambda: self.states() == ["up"])

    def states(self) -> list[str]:
        return [server.state for server in self.gateway.servers("chat")]


def fake_case() -> Case:
    gateway = FakeGateway("chat", "embed")
    address, tls_address, stranger = (f"127.0.0.1:{port}" for port in (8000, 8001, 8002))
    gateway.strangers.add(stranger)
    heard: list[str] = []
    numbers = iter(range(1000))

    @contextmanager
    def hold() -> Iterator[None]:
        gateway.set_in_flight("chat", "blue", address, 1)
        yield
        gateway.set_in_flight("chat", "blue", address, 0)

    def stream(tokens: int) -> None:
        times = {"first_token_ms": 5.0, "per_token_ms": 1.0} if tokens else {}
        gateway.append("chat", replace(an_outcome("stream", address), tokens=tokens, is_empty=not tokens, **times))

    def ask() -> None:
        (up,) = (server for server in gateway.servers("chat") if server.state == "up")
        key = gateway.keys.get(("chat", "blue"))
        heard.append(f"Bearer {key}" if key else USERS_OWN)
        gateway.append("chat", an_outcome(f"{next(numbers)}", up.address))

    return Case(
        gateway,
        address,
        tls_address,
        stranger,
        ask,
        stream,
        heard=lambda: heard[-1],
        hold=hold,
        restart=lambda: gateway.lose_log("chat"),
    )


def an_outcome(request: str, address: str) -> Outcome:
    return Outcome(
        id=request,
        at=0,
        slot="blue",
        address=address,
        status=200,
        first_token_ms=None,
        tokens=None,
        per_token_ms=None,
        total_ms=1,
        user=None,
        retried=False,
        by_fallback=False,
        cut_short=False,
        is_empty=False,
        user_left=False,
    )


def real_case(running: RunningGateway, gateway: Gateway, replica: Replica, tls: Replica, stranger: Replica) -> Case:
    def logged() -> int:
        return len(running.by_socket.requests("chat", "none").outcomes)

    def ask(**asked: Any) -> None:
        before = logged()
        assert running.ask(headers={"authorization": USERS_OWN}, **asked).status_code == 200
        wait_until("the request is logged", lambda: logged() > before)

    def stream(tokens: int) -> None:
        ask(stream=True, tokens=tokens, seconds_per_token=0.01)

    @contextmanager
    def hold() -> Iterator[None]:
        user = threading.Thread(target=running.ask, kwargs={"wait_for_release": True})
        user.start()
        yield
        replica.release.set()
        user.join()

    def restart() -> None:
        running.kill()
        running.start()

    def heard() -> str | None:
        assert stranger.seen == []
        return (tls.seen or replica.seen)[-1].get("authorization")

    return Case(gateway, replica.address, tls.address, stranger.address, ask, stream, heard, hold, restart)


@pytest.fixture(params=["fake", *(pytest.param(way, marks=pytest.mark.server) for way in ("socket", "tls"))])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    if request.param == "fake":
        yield fake_case()
        return
    tls, strangers = (
        serving_context(new_identity(authority, NOW), tmp_path) for authority in (AUTHORITY, new_authority(NOW))
    )
    with (
        Replica("blue") as replica,
        Replica("tls", tls) as tls_replica,
        Replica("stranger", strangers) as stranger,
        running_gateway(tmp_path / "run", authority=AUTHORITY) as running,
    ):
        gateway = running.by_socket if request.param == "socket" else running.by_tls
        yield real_case(running, gateway, replica, tls_replica, stranger)


def test_a_service_starts_with_all_its_traffic_on_blue(case: Case) -> None:
    """Nobody is sent to green before someone says so."""
    assert case.gateway.split("chat") == Split(0)


def test_a_split_stands_for_its_own_service_only(case: Case) -> None:
    """A split is reported as it was set, and the other service keeps its own."""
    case.gateway.set_split("chat", Split(500))
    assert (case.gateway.split("chat"), case.gateway.split("embed")) == (Split(500), Split(0))


def test_an_attached_replica_comes_up(case: Case) -> None:
    """A healthy replica is up a moment after it was attached, and belongs to its slot alone."""
    case.attach()
    (server,) = case.gateway.servers("chat")
    assert (server.slot, server.address, server.in_flight) == ("blue", case.address, 0)
    assert case.gateway.servers("embed") == ()


def test_attaching_twice_is_attaching_once(case: Case) -> None:
    """A retry of attach leaves one server."""
    case.attach()
    case.attach()
    assert len(case.gateway.servers("chat")) == 1


def test_one_replica_can_stand_in_both_slots(case: Case) -> None:
    """Slots do not know of each other."""
    case.gateway.attach("chat", "green", case.address, is_tls=False)
    case.gateway.attach("chat", "blue", case.address, is_tls=False)
    assert [server.slot for server in case.gateway.servers("chat")] == ["blue", "green"]


def test_a_drained_replica_can_be_attached_again(case: Case) -> None:
    """Drain is reported, may be repeated, and ends with attach."""
    case.attach()
    case.gateway.drain("chat", "blue", case.address)
    case.gateway.drain("chat", "blue", case.address)
    assert case.states() == ["draining"]
    case.attach()


def test_a_detached_replica_is_forgotten(case: Case) -> None:
    """Detach leaves nothing behind, and may be repeated."""
    case.attach()
    case.gateway.detach("chat", "blue", case.address)
    case.gateway.detach("chat", "blue", case.address)
    assert case.gateway.servers("chat") == ()


def test_what_is_in_flight_is_counted_also_while_it_drains(case: Case) -> None:
    """A drained replica can be stopped once its requests have ended, so they have to be seen."""
    case.attach()
    with case.hold():
        wait_until("it is in flight", lambda: case.gateway.servers("chat")[0].in_flight == 1)
        case.gateway.drain("chat", "blue", case.address)
        assert case.gateway.servers("chat")[0].in_flight == 1
    wait_until("it has ended", lambda: case.gateway.servers("chat")[0].in_flight == 0)


def test_draining_a_stranger_is_refused(case: Case) -> None:
    """A typing error in an address must not look like a drained replica."""
    with pytest.raises(Refused, match=r"no server 127\.0\.0\.1:9 in blue of chat"):
        case.gateway.drain("chat", "blue", "127.0.0.1:9")


def test_an_address_can_be_of_either_family(case: Case) -> None:
    """IPv6 stands in brackets, and is found again as it was given."""
    case.gateway.attach("chat", "blue", "[::1]:9", is_tls=False)
    assert [server.address for server in case.gateway.servers("chat")] == ["[::1]:9"]
    case.gateway.detach("chat", "blue", "[::1]:9")
    assert case.gateway.servers("chat") == ()


SPELLINGS = ["[::1]:9", "[0:0:0:0:0:0:0:1]:9", "[0000::0001]:9", "[::0:1]:09"]


@pytest.mark.parametrize(
    ("spellings", "address"),
    [
        (SPELLINGS, "[::1]:9"),
        (["[2001:DB8::7]:80", "[2001:db8:0:0::7]:80"], "[2001:db8::7]:80"),
        (["[::ffff:192.0.2.7]:80", "[::ffff:c000:207]:80", "[::FFFF:C000:0207]:80"], "[::ffff:192.0.2.7]:80"),
    ],
)
def test_an_address_is_the_same_however_it_is_spelt(case: Case, spellings: list[str], address: str) -> None:
    """Attached, drained and detached by any spelling, it is one server, told by the shortest."""
    for spelling in spellings:
        case.gateway.attach("chat", "blue", spelling, is_tls=False)
        case.gateway.drain("chat", "blue", spelling)
        assert [server.address for server in case.gateway.servers("chat")] == [address]
    for spelling in reversed(spellings):
        case.gateway.attach("chat", "blue", address, is_tls=False)
        case.gateway.detach("chat", "blue", spelling)
        assert case.gateway.servers("chat") == ()


@pytest.mark.parametrize("verb", ["attach", "drain", "detach"])
def test_an_address_that_one_host_alone_knows_is_refused(case: Case, verb: str) -> None:
    """A zone names an interface of whoever says it."""
    more = {"is_tls": False} if verb == "attach" else {}
    with pytest.raises(Refused, match=r"\[fe80::1%eth0\]:80 has a zone, which means something on one host alone"):
        getattr(case.gateway, verb)("chat", "blue", "[fe80::1%eth0]:80", **more)


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:8000", "127.0.0.1", "127.0.0.1:http", "::1:8000", "[::1]", "[::1]:", "[127.0.0.1]:80"),
        *("127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:\u0661", "127.1:80", "0x7f.0.0.1:80"),
        *("1:2:3:4:5:6:7:80", "[[::1]]:80"),
    ],
)
def test_what_is_no_address_is_refused(case: Case, address: str) -> None:
    """A gateway looks up no names: an address is an IP and a port."""
    with pytest.raises(Refused, match="is no address"):
        case.gateway.attach("chat", "blue", address, is_tls=False)
    assert case.gateway.servers("chat") == ()


@pytest.mark.parametrize(
    "verb",
    [
        lambda gateway: gateway.split("nope"),
        lambda gateway: gateway.set_split("nope", Split(1)),
        lambda gateway: gateway.servers("nope"),
        lambda gateway: gateway.attach("nope", "blue", "127.0.0.1:9", is_tls=False),
        lambda gateway: gateway.drain("nope", "blue", "127.0.0.1:9"),
        lambda gateway: gateway.detach("nope", "blue", "127.0.0.1:9"),
        lambda gateway: gateway.set_key("nope", "blue", "k3y"),
        lambda gateway: gateway.requests("nope", None),
    ],
    ids=["split", "set_split", "servers", "attach", "drain", "detach", "set_key", "requests"],
)
def test_a_service_that_is_not_there_is_refused_by_name(case: Case, verb: Callable[[Gateway], object]) -> None:
    """Whoever asks for a service that is not there learns which ones are."""
    with pytest.raises(Refused, match="no service nope; there are: chat, embed"):
        verb(case.gateway)


def test_a_replica_can_speak_tls(case: Case) -> None:
    """It comes up and serves like a plain one, is known by its address alone, and can be drained and detached."""
    case.attach(is_tls=True)
    case.attach(is_tls=True)
    start = case.gateway.requests("chat", None)
    case.ask()
    assert [outcome.address for outcome in case.gateway.requests("chat", start.cursor).outcomes] == [case.tls_address]
    case.gateway.drain("chat", "blue", case.tls_address)
    assert case.states() == ["draining"]
    case.gateway.detach("chat", "blue", case.tls_address)
    assert case.states() == []


def test_a_replica_that_another_authority_vouches_for_gets_nothing(case: Case) -> None:
    """It stays down, and whoever is up answers."""
    case.gateway.attach("chat", "blue", case.stranger, is_tls=True)
    case.gateway.attach("chat", "blue", case.tls_address, is_tls=True)
    wait_until("the known one is up", lambda: "up" in case.states())
    for _ in range(3):
        case.ask()
    states = {server.address: server.state for server in case.gateway.servers("chat")}
    assert states == {case.stranger: "down", case.tls_address: "up"}


def test_plain_and_tls_are_not_mixed_up(case: Case) -> None:
    """An address that is attached in one way is not silently spoken to in the other."""
    case.attach()
    with pytest.raises(Refused, match=f"{case.address} is attached as plain and not as tls; detach it first"):
        case.gateway.attach("chat", "blue", case.address, is_tls=True)
    case.gateway.detach("chat", "blue", case.address)
    case.gateway.attach("chat", "blue", case.address, is_tls=True)


@pytest.mark.parametrize("is_tls", [True, False])
def test_a_slots_key_reaches_its_replicas_in_place_of_the_users(case: Case, *, is_tls: bool) -> None:
    """Set anew it is another one, and taken away the user's own comes through again."""
    case.attach(is_tls=is_tls)
    heard = []
    for key in (None, "k3y", "another-one", "another-one", None, None):
        case.gateway.set_key("chat", "blue", key)
        case.ask()
        heard.append(case.heard())
    assert heard == [USERS_OWN, "Bearer k3y", "Bearer another-one", "Bearer another-one", USERS_OWN, USERS_OWN]


def test_a_key_stands_for_its_own_slot_only(case: Case) -> None:
    """Neither the other slot's replicas nor the other service's get it."""
    case.gateway.set_key("chat", "green", "k3y")
    case.gateway.set_key("embed", "blue", "k3y")
    case.attach()
    case.ask()
    assert case.heard() == USERS_OWN


def test_key_and_tls_outlive_a_restart(case: Case) -> None:
    """Users notice nothing of it."""
    case.attach(is_tls=True)
    case.gateway.set_key("chat", "blue", "k3y")
    case.restart()
    wait_until("the replica is up", lambda: case.states() == ["up"])
    case.ask()
    assert case.heard() == "Bearer k3y"


def test_a_key_that_could_smuggle_in_a_command_is_refused_unquoted(case: Case) -> None:
    """Of whatever it was, nothing stands in the error."""
    with pytest.raises(Refused, match="the key for blue of chat has other characters") as raised:
        case.gateway.set_key("chat", "blue", "k3y;shutdown")
    assert "k3y" not in str(raised.value)


def test_a_first_reading_is_only_a_cursor(case: Case) -> None:
    """Without a cursor there are no requests to tell of, and none are missing."""
    case.attach()
    case.ask()
    reading = case.gateway.requests("chat", None)
    assert (reading.outcomes, reading.is_complete) == ((), True)
    assert case.gateway.requests("chat", reading.cursor).outcomes == ()


def test_a_reading_tells_of_each_request_once_and_in_order(case: Case) -> None:
    """From cursor to cursor, also from a log that was empty, nothing is told twice or left out."""
    case.attach()
    start = case.gateway.requests("chat", None)
    case.ask()
    case.ask()
    first = case.gateway.requests("chat", start.cursor)
    case.ask()
    second = case.gateway.requests("chat", first.cursor)
    assert [len(reading.outcomes) for reading in (first, second)] == [2, 1]
    assert len({outcome.id for outcome in first.outcomes + second.outcomes}) == 3
    assert first.is_complete
    assert second.is_complete
    assert case.gateway.requests("chat", start.cursor).outcomes == first.outcomes + second.outcomes


def test_an_outcome_says_who_answered_and_how(case: Case) -> None:
    """A plain good answer carries its slot, replica, status and times, and none of the marks of trouble."""
    case.attach()
    start = case.gateway.requests("chat", None)
    case.ask()
    (outcome,) = case.gateway.requests("chat", start.cursor).outcomes
    slot: Slot = "blue"
    assert (outcome.slot, outcome.address, outcome.status) == (slot, case.address, 200)
    assert (outcome.first_token_ms, outcome.tokens, outcome.per_token_ms) == (None, None, None)
    assert (outcome.retried, outcome.by_fallback, outcome.cut_short, outcome.user_left) == (False,) * 4
    assert not outcome.is_empty


def test_an_outcome_says_how_many_tokens_a_stream_had(case: Case) -> None:
    """With their times, where there were enough; one without any is an empty answer, which is a failed one."""
    case.attach()
    start = case.gateway.requests("chat", None)
    case.stream(6)
    case.stream(0)
    told, empty = case.gateway.requests("chat", start.cursor).outcomes
    assert (told.tokens, told.is_empty, has_failed(told)) == (6, False, False)
    assert told.first_token_ms is not None
    assert told.per_token_ms is not None
    assert (empty.tokens, empty.is_empty, has_failed(empty)) == (0, True, True)
    assert (empty.first_token_ms, empty.per_token_ms) == (None, None)


def test_a_log_that_was_lost_says_so(case: Case) -> None:
    """After a restart the reading is marked incomplete once, also where no request came before or after it."""
    before = case.gateway.requests("chat", None)
    case.restart()
    after = case.gateway.requests("chat", before.cursor)
    assert (after.outcomes, after.is_complete) == ((), False)
    assert case.gateway.requests("chat", after.cursor).is_complete
