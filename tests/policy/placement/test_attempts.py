"""What past launches say about the next one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.ports.market import Offer, Stock
from flows.policy.placement.attempts import (
    HIGHEST_CHANCE,
    KEPT_ATTEMPTS,
    LOWEST_CHANCE,
    PRIOR_CHANCE,
    PRIOR_CHANCE_SPOT,
    Attempt,
    Attempts,
    answer_seconds,
    chance,
    note,
    start_seconds,
    usual_chance,
)

NOW = 1_800_000_000.0
UNHURRIED = settings(deadline=None)
"""The machine may be busy with something else."""
HOUR, DAY = 3600.0, 86400.0
OFFER = Offer("aws/us-east-1/us-east-1a", "L4", 1, 24, 64, use_spot=True, dollars_per_hour=0.4)
NEIGHBOUR = replace(OFFER, cell="aws/us-east-1/us-east-1b")
ELSEWHERE = replace(OFFER, cell="aws/us-west-2/us-west-2a")


def attempt(offer: Offer = OFFER, ago: float = 0, seconds: float | None = 60, said_no: str | None = None) -> Attempt:
    return Attempt(
        cell=offer.cell,
        accelerator=offer.accelerator,
        accelerators=offer.accelerators,
        use_spot=offer.use_spot,
        at=NOW - ago,
        seconds=seconds,
        said_no=said_no,
    )


def remembering(*attempts: Attempt) -> Attempts:
    memory = Attempts()
    for one in attempts:
        memory = note(memory, one)
    return memory


def said(answer: str, ago: float = 0, confidence: float = 1) -> Stock:
    return Stock(answer, NOW - ago, confidence, "words")  # pyright: ignore[reportArgumentType] - a literal, by each caller


def test_without_a_past_the_prior_speaks() -> None:
    """Spot machines come more seldom than others."""
    assert chance(Attempts(), OFFER, NOW) == PRIOR_CHANCE_SPOT
    assert chance(Attempts(), replace(OFFER, use_spot=False), NOW) == PRIOR_CHANCE


def test_a_no_is_near_certain_at_first_and_then_wears_off() -> None:
    """Just refused, refused yesterday, refused a month ago: the chance comes back up to the usual one."""
    chances = [chance(remembering(attempt(ago=ago, said_no="full")), OFFER, NOW) for ago in (0, HOUR, DAY, 29 * DAY)]
    assert chances == sorted(chances)
    assert chances[0] < 0.1
    assert chances[-1] == pytest.approx(PRIOR_CHANCE_SPOT, abs=0.05)


def test_a_zone_speaks_for_its_region_and_not_for_others() -> None:
    """What one zone said counts less next door, and nothing in another region or for another kind of machine."""
    memory = remembering(attempt(said_no="full"))
    unknown = chance(Attempts(), OFFER, NOW)
    assert chance(memory, OFFER, NOW) < chance(memory, NEIGHBOUR, NOW) < unknown
    for other in (ELSEWHERE, replace(OFFER, accelerators=8), replace(OFFER, accelerator="H100")):
        assert chance(memory, other, NOW) == unknown
    assert chance(memory, replace(OFFER, use_spot=False), NOW) == PRIOR_CHANCE


@pytest.mark.parametrize("confidence", [0.3, 1.0])
def test_stock_moves_the_chance_by_how_sure_it_is(confidence: float) -> None:
    """Free is better than unknown, unknown better than none, and the more so the surer the answer."""
    free, none = (chance(Attempts(), OFFER, NOW, said(answer, confidence=confidence)) for answer in ("free", "none"))
    assert free == pytest.approx(PRIOR_CHANCE_SPOT + confidence * (1 - PRIOR_CHANCE_SPOT), abs=0.03)
    assert none == pytest.approx(PRIOR_CHANCE_SPOT * (1 - confidence), abs=0.03)
    assert chance(Attempts(), OFFER, NOW, said("unknown", confidence=confidence)) == PRIOR_CHANCE_SPOT


def test_the_latest_answer_has_the_last_word() -> None:
    """A cell that was counted free ten minutes ago and said no since is not free; the other way round it is."""
    refused_since = chance(remembering(attempt(ago=60, said_no="full")), OFFER, NOW, said("free", ago=600))
    free_since = chance(remembering(attempt(ago=600, said_no="full")), OFFER, NOW, said("free", ago=60))
    assert refused_since < 0.2
    assert free_since > 0.8


ATTEMPTS = st.lists(
    st.builds(
        attempt,
        st.sampled_from([OFFER, NEIGHBOUR, ELSEWHERE]),
        st.floats(0, 40 * DAY),
        st.floats(1, 3600),
        st.sampled_from([None, "full"]),
    ),
    max_size=12,
)
STOCK = st.builds(said, st.sampled_from(["free", "none", "unknown", "refused"]), st.floats(0, 2 * DAY), st.floats(0, 1))


@UNHURRIED
@given(ATTEMPTS, STOCK)
def test_nothing_is_ever_certain(past: list[Attempt], stock: Stock) -> None:
    """Whatever was said, the chance stays between the lowest and the highest."""
    assert LOWEST_CHANCE <= chance(remembering(*past), OFFER, NOW, stock) <= HIGHEST_CHANCE


@UNHURRIED
@given(ATTEMPTS, st.floats(0, 20 * DAY))
def test_a_no_never_helps_and_a_start_never_hurts(past: list[Attempt], ago: float) -> None:
    """Whenever it came, both now and usually."""
    memory = Attempts(attempts=tuple(sorted(past, key=lambda one: one.at)))
    for measure in (chance, usual_chance):
        refused, started = (
            measure(Attempts(attempts=(*memory.attempts, attempt(ago=ago, said_no=words))), OFFER, NOW)
            for words in ("full", None)
        )
        assert refused <= measure(memory, OFFER, NOW) + 1e-12
        assert started >= measure(memory, OFFER, NOW) - 1e-12


def test_the_memory_is_bounded_by_count_and_age() -> None:
    """The newest stay, whatever the order in which they are noted; the same one twice counts once."""
    memory = remembering(attempt(ago=40 * DAY), attempt(ago=DAY), attempt(ago=2 * DAY), attempt(ago=DAY))
    assert [one.at for one in memory.attempts] == [NOW - 2 * DAY, NOW - DAY]
    many = Attempts(attempts=tuple(attempt(ago=KEPT_ATTEMPTS - second) for second in range(KEPT_ATTEMPTS)))
    assert len(note(many, attempt()).attempts) == KEPT_ATTEMPTS
    assert note(many, attempt()).attempts[-1] == attempt()


def test_the_memory_survives_being_written_and_read() -> None:
    """It is one JSON document, and says the same before and after."""
    memory = remembering(attempt(said_no="full"), attempt(NEIGHBOUR, ago=HOUR))
    again = Attempts.model_validate_json(memory.model_dump_json())
    assert again == memory
    assert chance(again, OFFER, NOW) == chance(memory, OFFER, NOW)


def test_how_long_a_start_takes_is_learnt_there() -> None:
    """The median of the cell's last starts; else its region's; else what is taken to be usual; and a no apart."""
    starts = [attempt(seconds=seconds, ago=100 - seconds) for seconds in (10, 20, 30, 40, 50, 60)]
    memory = remembering(*starts, attempt(seconds=7, said_no="full"))
    assert start_seconds(memory, OFFER, 900) == 40
    assert start_seconds(memory, NEIGHBOUR, 900) == 40
    assert start_seconds(memory, ELSEWHERE, 900) == 900
    assert answer_seconds(memory, OFFER, 90) == 7


def test_a_machine_that_was_lost_says_nothing_of_how_long_a_no_takes() -> None:
    """It makes the next launch there less likely to succeed, as a no does."""
    lost = attempt(seconds=None, said_no="chat-1a-0 was lost there")
    assert answer_seconds(remembering(lost), OFFER, 90) == 90
    assert answer_seconds(remembering(lost, attempt(seconds=7, said_no="full")), OFFER, 90) == 7
    assert chance(remembering(lost), OFFER, NOW) == chance(remembering(attempt(said_no="full")), OFFER, NOW)
