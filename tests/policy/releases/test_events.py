"""What is told of releases, by the ledger's steps alone, and known again where it is told twice."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from blocks.errors import Refused
from blocks.ports.fleet import Replica
from flows.policy.releases.events import Event, events_of_last_step, fleet_scaled
from flows.policy.releases.ledger import (
    ServiceRecord,
    Stage,
    ask_for,
    back_out,
    begin_stopping,
    counted,
    go_live,
    keep_warm,
    note_stage,
    retire,
    take_over,
    why_not_to_retire,
)
from flows.policy.releases.scale import kept_warm
from tests.policy.releases.test_ledger import opened

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
PASSED = Stage(share_percent=10, verdict="promote", reason="as good as stable", requests=300, seconds=60)


class Ledger:
    """Takes steps, and notes what each of them tells."""

    def __init__(self, record: ServiceRecord | None = None) -> None:
        self.record = record or ServiceRecord()
        self.told: list[Event] = []

    def step(self, step: Callable[[ServiceRecord], ServiceRecord]) -> list[str]:
        self.record = counted(self.record, step(self.record))
        events = events_of_last_step(self.record)
        self.told += events
        return [event.name.removeprefix("skyferry.release.") for event in events]

    @property
    def ids(self) -> list[str]:
        return [release.id for release in self.record.releases]


@pytest.fixture
def ledger() -> Ledger:
    """The second release is in progress beside the first, which is live."""
    ledger = Ledger()
    ledger.step(partial(opened, commit="v1"))
    ledger.step(partial(go_live, run_id="run"))
    ledger.step(partial(opened, commit="v2"))
    return ledger


def test_a_release_tells_each_step_of_its_way(ledger: Ledger) -> None:
    """Opened, a stage passed, promoted, and the one before it replaced and retired; what moves none tells nothing."""
    assert [event.name for event in ledger.told] == [f"skyferry.release.{n}" for n in ("opened", "promoted", "opened")]
    assert ledger.step(partial(note_stage, run_id="run", stage=PASSED)) == ["stage.passed"]
    passed = ledger.told[-1].payload
    assert (passed["weight_percent"], passed["requests"], passed["reason"]) == (10, 300, "as good as stable")
    assert sorted(ledger.step(partial(go_live, run_id="run"))) == ["promoted", "replaced"]
    first = ledger.ids[0]
    assert ledger.step(partial(keep_warm, release=first, until=NOW)) == []
    assert ledger.step(partial(begin_stopping, release=first)) == []
    assert ledger.step(partial(retire, release=first)) == ["retired"]
    assert ledger.step(partial(ask_for, replicas=1)) == []
    assert ledger.record.version == 9


def test_a_roll_back_says_why_and_who_has_the_users_again(ledger: Ledger) -> None:
    """A candidate's is one event; a live release's is two, for the one before it is live once more."""
    assert ledger.step(partial(back_out, release=ledger.ids[1], reason="slow")) == ["rolled-back"]
    assert ledger.told[-1].payload["reason"] == "slow"
    ledger.step(partial(opened, commit="v3"))
    ledger.step(partial(go_live, run_id="run"))
    told = ledger.step(partial(back_out, release=ledger.ids[2], reason="users complain"))
    assert sorted(told) == ["restored", "rolled-back"]


def test_a_step_that_is_taken_again_tells_what_is_known(ledger: Ledger) -> None:
    """As where the answer to its writing was lost: nothing changes, and the event has the id that it had."""
    ledger.step(partial(note_stage, run_id="run", stage=PASSED))
    before = (ledger.record, ledger.told[-1].id)
    assert ledger.step(partial(note_stage, run_id="run", stage=PASSED)) == ["stage.passed"]
    assert (ledger.record, ledger.told[-1].id) == before
    assert len({event.id for event in ledger.told}) == len(ledger.told) - 1


def test_another_run_that_goes_on_opens_nothing(ledger: Ledger) -> None:
    """The release is the one that was opened."""
    assert ledger.step(partial(take_over, run_id="other", ended_run_id="run")) == []


def test_a_ledger_of_version_0_1_tells_nothing_of_what_was_before(ledger: Ledger) -> None:
    """It counted no versions; the first step from there tells what it does, and no more."""
    old = ServiceRecord.model_validate_json(ledger.record.model_dump_json(exclude={"version": True}))
    bare = tuple(release.model_copy(update={"version": 0}) for release in old.releases)
    ledger = Ledger(old.model_copy(update={"releases": bare}))
    assert ledger.record.version == 0
    assert ledger.step(lambda record: record) == []
    assert ledger.step(partial(note_stage, run_id="run", stage=PASSED)) == ["stage.passed"]


def test_a_fleet_that_was_scaled_says_what_it_costs_less() -> None:
    """Where each replica has a price; where one has none, nobody knows."""
    one = Replica("chat-1-0", "chat", "chat-1", "aws", "", dollars_per_hour=2.5)
    free = Replica("chat-1-1", "chat", "chat-1", "here", "", dollars_per_hour=None)
    record = ServiceRecord(version=7, wanted=1)
    event = fleet_scaled(record, "chat", stopped=[one])
    assert (event.payload["dollars_per_hour"], event.payload["wanted"], event.payload["stopped"]) == (
        2.5,
        1,
        [one.name],
    )
    assert fleet_scaled(record, "chat", stopped=[one, free]).payload["dollars_per_hour"] is None
    assert event.id == fleet_scaled(record, "chat", stopped=[one]).id != fleet_scaled(record, "chat", stopped=[free]).id


# --- Retiring --------------------------------------------------------------------------------------------------------


def test_what_was_replaced_is_to_retire_and_nothing_else_is(ledger: Ledger) -> None:
    """One that is live again, or that nobody knows, is refused; done already, there is nothing to do."""
    first, second = ledger.ids
    ledger.step(partial(go_live, run_id="run"))
    ledger.step(partial(keep_warm, release=first, until=NOW))
    assert why_not_to_retire(ledger.record, first, NOW) == ""
    with pytest.raises(Refused, match=rf"{second} is live, so it is not retired; .* may be: {first}"):
        why_not_to_retire(ledger.record, second, None)
    with pytest.raises(Refused, match="is not in the ledger"):
        why_not_to_retire(ledger.record, "chat-unknown", None)
    ledger.step(partial(begin_stopping, release=first))
    ledger.step(partial(retire, release=first))
    assert "retired already" in why_not_to_retire(ledger.record, first, NOW)


def test_a_run_planned_for_an_earlier_end_leaves_the_later_one_alone(ledger: Ledger) -> None:
    """Users had gone back to it, and it was replaced anew: only a person stops it before its time."""
    first = ledger.ids[0]
    ledger.step(partial(go_live, run_id="run"))
    ledger.step(partial(keep_warm, release=first, until=NOW + timedelta(hours=1)))
    assert "another run stops it then" in why_not_to_retire(ledger.record, first, NOW)
    assert why_not_to_retire(ledger.record, first, None) == ""


def test_the_night_spares_what_is_warm_until_then(ledger: Ledger) -> None:
    """By the ledger's time; where that says none, as long as the run lives that replaced it."""
    first = ledger.ids[0]
    ledger.step(partial(go_live, run_id="run"))
    assert kept_warm(ledger.record, NOW, has_ended=lambda _: False) == {first}
    assert kept_warm(ledger.record, NOW, has_ended=lambda _: True) == set()
    ledger.step(partial(keep_warm, release=first, until=NOW))
    assert kept_warm(ledger.record, NOW - timedelta(seconds=1), has_ended=lambda _: True) == {first}
    assert kept_warm(ledger.record, NOW, has_ended=lambda _: False) == set()
