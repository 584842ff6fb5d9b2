"""Do as many answer as were asked for, and when is it tried again?"""

from datetime import timedelta

import pytest

from blocks.ports.engine import Load
from blocks.ports.gateway import Server
from flows.policy.releases.ledger import Shortage, ask_for, end_shortage, note_shortage
from flows.policy.releases.reconcile import LONGEST_PAUSE, asked_for, how_it_stands, next_try_at, who_hangs
from tests.policy.releases.test_ledger import NOW, with_live
from tests.policy.releases.test_scale import LIVE, RECORD, release, replica, up

LIVE_RELEASE = release("live", "live")


@pytest.mark.parametrize(("wanted", "number"), [(None, 3), (1, 1), (0, 0), (5, 3)])
def test_the_last_word_counts_up_to_the_number_by_day(wanted: int | None, number: int) -> None:
    """Nobody can ask for more than there are names for."""
    assert asked_for(ask_for(RECORD, wanted), by_day=3) == number


def test_those_that_requests_reach_serve() -> None:
    """One that is down, or in no slot, or in another one's, does not; one held back on purpose is left as it is."""
    servers = [
        *up(LIVE[0]),
        Server("blue", LIVE[1].address, "down", 0),
        Server("green", LIVE[2].address, "up", 0),
    ]
    standing = how_it_stands(LIVE_RELEASE, 3, [*LIVE, replica("bad", 0)], servers)
    assert (standing.serving, standing.missing) == ((LIVE[0],), 2)
    assert standing.words == "1 of the 3 replicas of live that were asked for serve"
    drained = [*up(LIVE[0]), Server("blue", LIVE[1].address, "draining", 0)]
    assert how_it_stands(LIVE_RELEASE, 2, LIVE[:2], drained).missing == 0
    assert how_it_stands(LIVE_RELEASE, 1, LIVE[:2], drained[1:]).missing == 1  # nobody else is up
    assert how_it_stands(LIVE_RELEASE, 1, LIVE[:2], up(*LIVE[:2])).missing == 0


def test_tries_grow_rarer_up_to_a_quarter_of_an_hour() -> None:
    """A cell that said no a minute ago says it again; and nobody is given up."""
    assert next_try_at(None) is None

    def pause_after(tries: int) -> timedelta:
        at = next_try_at(Shortage(since=NOW, tries=tries, last_try_at=NOW, reason="no"))
        assert at is not None
        return at - NOW

    assert [pause_after(tries) for tries in (1, 2, 3)] == [timedelta(minutes=m) for m in (1, 2, 4)]
    assert pause_after(1000) == LONGEST_PAUSE


def test_a_shortage_keeps_its_beginning_and_ends_with_another_number() -> None:
    """So that the words say since when; whoever asks for another number begins anew."""
    later = NOW + timedelta(minutes=5)
    record = note_shortage(note_shortage(with_live(), "no machine", NOW), "none yet", later)
    assert record.shortage == Shortage(since=NOW, tries=2, last_try_at=later, reason="none yet")
    assert end_shortage(record).shortage is None
    assert ask_for(record, 1).shortage is None


BUSY = Load(4, 9, prompt_tokens=10, generated_tokens=100)


@pytest.mark.parametrize(
    ("before", "after", "hangs"),
    [
        (BUSY, BUSY, True),
        (None, None, True),
        (BUSY, None, True),
        (None, BUSY, False),
        (BUSY, Load(4, 9, prompt_tokens=10, generated_tokens=101), False),
        # It reads a long prompt.
        (BUSY, Load(4, 9, prompt_tokens=11, generated_tokens=100), False),
        # It does not count: nobody knows, and unknown is busy.
        (Load(4, 9), Load(4, 9), False),
        # It was started anew meanwhile.
        (BUSY, Load(0, 0, prompt_tokens=0, generated_tokens=0), False),
    ],
)
def test_who_twice_completes_nothing_and_counts_no_token_hangs(
    before: Load | None, after: Load | None, *, hangs: bool
) -> None:
    """A queue is no hang."""
    found = who_hangs(LIVE[:1], {LIVE[0].name: before}, {LIVE[0].name: after})
    assert found == (tuple(LIVE[:1]) if hangs else ())
