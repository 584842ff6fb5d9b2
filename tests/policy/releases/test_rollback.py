"""Whether stable could take its traffic back, by what gateway and engines say."""

from typing import Literal

import pytest

from blocks.ports.engine import Load
from blocks.ports.gateway import Server
from flows.policy.gating.decide import Finding, Ruling
from flows.policy.releases.rollback import alone_answering, hold_while_blocked, rollback_blockers

State = Literal["up", "down", "draining"]

UP = Server("blue", "127.0.0.1:1", "up", 3)
ALSO_UP = Server("blue", "127.0.0.1:2", "up", 0)
DOWN = Server("blue", "127.0.0.1:2", "down", 0)
DRAINING = Server("blue", "127.0.0.1:2", "draining", 0)
IDLE = {UP.address: Load(0, 0), ALSO_UP.address: Load(0, 0)}


def blockers(*servers: Server, loads: dict[str, Load | None] | None = None, had: int = 2) -> str:
    return rollback_blockers(servers, IDLE if loads is None else loads, had=had, parallel_requests=4)


def test_a_stable_that_is_whole_and_idle_could() -> None:
    """All its replicas are up, and up to as many requests wait as they answer at a time."""
    assert not blockers(UP, ALSO_UP)
    assert not blockers(UP, ALSO_UP, loads={UP.address: Load(4, 8), ALSO_UP.address: Load(4, 0)})


@pytest.mark.parametrize(
    ("servers", "had", "words"),
    [
        ((UP, DOWN), 2, "1 of its 2 replicas are up (127.0.0.1:2 is down)"),
        ((UP, DRAINING), 1, "1 of its 2 replicas are up (127.0.0.1:2 is draining)"),
        ((UP,), 2, "1 of its 2 replicas are up"),
        ((), 0, "no replica of it is at the gateway; run scale-up, which starts them"),
    ],
)
def test_fewer_replicas_than_it_had_could_not(servers: tuple[Server, ...], had: int, words: str) -> None:
    """Whether the gateway still knows the missing one or not; and none at all is never enough."""
    assert blockers(*servers, had=had) == words


def test_what_waits_or_is_unknown_bars_the_way() -> None:
    """A queue longer than what is answered at a time, or one that nobody can read."""
    full = blockers(UP, ALSO_UP, loads={UP.address: Load(4, 9), ALSO_UP.address: Load(4, 0)})
    assert full == "9 requests wait at its replicas, which answer 8 at a time"
    assert blockers(UP, ALSO_UP, loads={UP.address: None}) == (
        "nobody knows how long the queue of 127.0.0.1:1, 127.0.0.1:2 is"
    )


def test_a_pass_waits_for_the_way_back_until_the_deadline() -> None:
    """What would be promoted is held, and then rolled back; any other ruling stands as it is."""
    passed, harm = Ruling("promote"), Ruling("roll back", (Finding("harm", "failed"),))
    assert hold_while_blocked(passed, "", 5, 10) == passed
    assert hold_while_blocked(passed, "no replica", 5, 10) == Ruling("hold", blockers="no replica")
    late = hold_while_blocked(passed, "no replica", 10, 10)
    assert (late.verdict, late.blockers) == ("roll back", "no replica")
    assert hold_while_blocked(harm, "no replica", 10, 10) == harm


@pytest.mark.parametrize(
    ("stays", "stays_well", "goes", "goes_well", "alone"),
    [
        ("down", False, "up", True, True),
        ("up", True, "up", True, False),
        ("up", True, "down", False, False),
        ("down", False, "down", False, False),
        # The gateway has not seen yet that it died.
        ("up", False, "up", True, True),
        # Well, but the gateway does not reach it: its users go elsewhere.
        ("down", True, "up", True, True),
        # Attached just now.
        ("down", False, "down", True, True),
        # Nobody is sent to what drains, well as it may be.
        ("down", False, "draining", True, False),
    ],
)
def test_who_answers_alone(stays: State, goes: State, *, stays_well: bool, goes_well: bool, alone: bool) -> None:
    """What goes does where it has a replica that is up or well, and what stays none that is both."""
    servers = [Server("blue", "127.0.0.1:1", stays, 0), Server("green", "127.0.0.1:2", goes, 0)]
    healthy = {server.address for server, well in zip(servers, (stays_well, goes_well), strict=True) if well}
    assert alone_answering(servers, healthy, {"127.0.0.1:2"}) == ({"127.0.0.1:2"} if alone else set())


def test_a_slot_is_no_matter_to_who_answers() -> None:
    """Of three in one slot, two go: they alone answer where the third one is down, and it need not be theirs."""
    servers = [UP, Server("blue", "127.0.0.1:3", "up", 0), DOWN]
    assert alone_answering(servers, {UP.address}, {UP.address, "127.0.0.1:3"}) == {UP.address, "127.0.0.1:3"}
    assert alone_answering(servers, {UP.address, "127.0.0.1:3"}, {UP.address}) == frozenset()
    assert alone_answering(servers, {UP.address, "127.0.0.1:3"}, {"127.0.0.1:9"}) == frozenset()
