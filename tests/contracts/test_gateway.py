"""What every gateway keeps to: the one in memory, and HAProxy by unix socket and by mutual TLS."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from blocks.errors import Refused
from blocks.ports import Gateway, Outcome, Slot, Split
from tests.fakes.gateway import FakeGateway
from tests.gateway.replica import Replica
from tests.gateway.running import RunningGateway, running_gateway, wait_until


@dataclass(frozen=True)
class Case:
    """A gateway with the services chat and embed, and how the world acts on it."""

    gateway: Gateway
    address: str
    """Where a healthy replica answers."""
    ask: Callable[[], None]
    """A user of chat asks, and the answer is logged; a replica in blue has to be up."""
    hold: Callable[[], AbstractContextManager[None]]
    """A request to that replica in blue is in flight for as long as the block lasts."""
    restart: Callable[[], None]

    def attach(self) -> None:
        self.gateway.attach("chat", "blue", self.address, is_tls=False)
        wait_until("the replica is up", lambda: self.states() == ["up"])

    def states(self) -> list[str]:
        return [server.state for server in self.gateway.servers("chat")]


def fake_case() -> Case:
    gateway = FakeGateway("chat", "embed")
    address = "127.0.0.1:8000"
    numbers = iter(range(1000))

    @contextmanager
    def hold() -> Iterator[None]:
        gateway.set_in_flight("chat", "blue", address, 1)
        yield
        gateway.set_in_flight("chat", "blue", address, 0)

    def ask() -> None:
        gateway.append("chat", an_outcome(f"{next(numbers)}", address))

    return Case(gateway, address, ask, hold, restart=lambda: gateway.lose_log("chat"))


def an_outcome(request: str, address: str) -> Outcome:
    return Outcome(
        id=request,
        at=0,
        slot="blue",
        address=address,
        status=200,
        first_token_ms=None,
        total_ms=1,
        user=None,
        retried=False,
        by_fallback=False,
        cut_short=False,
        user_left=False,
    )


def real_case(running: RunningGateway, gateway: Gateway, replica: Replica) -> Case:
    def logged() -> int:
        return len(running.by_socket.requests("chat", "none").outcomes)

    def ask() -> None:
        before = logged()
        assert running.ask().status_code == 200
        wait_until("the request is logged", lambda: logged() > before)

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

    return Case(gateway, replica.address, ask, hold, restart)


@pytest.fixture(params=["fake", *(pytest.param(way, marks=pytest.mark.server) for way in ("socket", "tls"))])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    if request.param == "fake":
        yield fake_case()
        return
    with Replica("blue") as replica, running_gateway(tmp_path / "run") as running:
        yield real_case(running, running.by_socket if request.param == "socket" else running.by_tls, replica)


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


@pytest.mark.parametrize("address", ["localhost:8000", "127.0.0.1", "127.0.0.1:http", "::1:8000"])
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
        lambda gateway: gateway.requests("nope", None),
    ],
    ids=["split", "set_split", "servers", "attach", "drain", "detach", "requests"],
)
def test_a_service_that_is_not_there_is_refused_by_name(case: Case, verb: Callable[[Gateway], object]) -> None:
    """Whoever asks for a service that is not there learns which ones are."""
    with pytest.raises(Refused, match="no service nope; there are: chat, embed"):
        verb(case.gateway)


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
    assert outcome.first_token_ms is None
    assert (outcome.retried, outcome.by_fallback, outcome.cut_short, outcome.user_left) == (False,) * 4


def test_a_log_that_was_lost_says_so(case: Case) -> None:
    """After a restart the reading is marked incomplete once, also where no request came before or after it."""
    before = case.gateway.requests("chat", None)
    case.restart()
    after = case.gateway.requests("chat", before.cursor)
    assert (after.outcomes, after.is_complete) == ((), False)
    assert case.gateway.requests("chat", after.cursor).is_complete
