"""What the demo claims of a report."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from blocks.ports.fleet import EngineBuild, EngineSettings
from blocks.ports.gateway import Slot
from deployments.local.demo import STAGES_PERCENT, Noticed, Step, claims
from flows.policy.releases.ledger import Release, Stage, State

V1 = "v1 was released"
V2 = "v2 took over through all stages"
ENGINE = "v2's engine has its new flag"
STATES = "v1 was retired, v2 is live, v3 and v4 were rolled back"
V4 = "v4's run says that it failed"
SLOW = "v4, half as fast, was taken back for its time to first token"
KIND = "nobody saw v4 fail: it is no worse than slow"
V3 = "v3's run says that it failed"
UNNOTICED = "no user noticed v2's promotion"
TOUCHED = "v3 touched at most about a stage's share of the users"
LOST = "no request was lost and no stream cut, ever"
NIGHT = "the night's replica is left, and it is v2's"
ASLEEP = "nobody noticed the scale-down"


def stage(share_percent: int, verdict: str = "promote") -> Stage:
    return Stage.model_validate(
        {"share_percent": share_percent, "verdict": verdict, "reason": "", "requests": 20, "seconds": 5}
    )


def release(name: str, slot: Slot, state: State, *stages: Stage, because: str = "") -> Release:
    return Release(
        id=f"chat-{name}",
        service="chat",
        repo="maker/model",
        commit="c0ffee",
        engine=EngineSettings(2048, 4, build=EngineBuild("llama.cpp", flags=(("cache-ram", "64"),))),
        slot=slot,
        state=state,
        run_id="run",
        opened_at=datetime(2026, 1, 1, tzinfo=UTC),
        stages=stages,
        closing_reason=because,
    )


SLOWER = "Rolled back at 5 %: time to first token is 620 ms at the median, 2 times stable's 310 ms (9 and 90 answers)."


@dataclass(frozen=True)
class Told:
    """What a demo has to tell where all went well: 200 users, of whom v3 refused 9."""

    steps: tuple[Step, ...] = (
        Step(name="v1", exit_code=0, seconds=9, noticed=Noticed()),
        Step(name="v2", exit_code=0, seconds=60, noticed=Noticed(sent=100)),
        Step(name="v3", exit_code=1, seconds=20, noticed=Noticed(sent=50, refused=9, users_who_saw_a_failure=9)),
        Step(name="v4", exit_code=1, seconds=70, noticed=Noticed(sent=200)),
        Step(name="night", exit_code=0, seconds=9, noticed=Noticed(sent=20)),
    )
    releases: tuple[Release, ...] = (
        release("v1", "blue", "retired"),
        release("v2", "green", "live", *map(stage, STAGES_PERCENT)),
        release("v3", "blue", "rolled back", stage(5, "roll back")),
        release("v4", "blue", "rolled back", stage(5, "roll back"), because=SLOWER),
    )
    left: tuple[str, ...] = ("chat-v2-0",)
    lost: int = 0
    streams_cut: int = 0

    def step(self, number: int, **changes: Any) -> "Told":
        changed = self.steps[number].model_copy(update=changes)
        return replace(self, steps=(*self.steps[:number], changed, *self.steps[number + 1 :]))

    def release(self, number: int, **changes: Any) -> "Told":
        changed = self.releases[number].model_copy(update=changes)
        return replace(self, releases=(*self.releases[:number], changed, *self.releases[number + 1 :]))

    @property
    def untrue(self) -> set[str]:
        users = {"users": 200, "lost": self.lost, "streams_cut": self.streams_cut}
        ruled = claims(self.steps, self.releases, self.left, users)
        return {claim for claim, came_true in ruled.items() if not came_true}


def test_all_comes_true_where_all_went_well() -> None:
    """The bad release's few refusals at 5 % are what the demo is about."""
    assert Told().untrue == set()


@pytest.mark.parametrize(
    ("change", "untrue"),
    [
        (lambda told: told.step(0, exit_code=1), {V1}),
        (lambda told: told.step(1, exit_code=1), {V2}),
        (lambda told: told.release(1, stages=tuple(map(stage, STAGES_PERCENT[:-1]))), {V2}),
        (lambda told: told.release(1, stages=(*map(stage, STAGES_PERCENT[:-1]), stage(100, "roll back"))), {V2}),
        (lambda told: told.release(1, engine=EngineSettings(2048, 4)), {ENGINE}),
        (lambda told: told.release(0, state="retiring"), {STATES}),
        (lambda told: told.release(1, state="in progress"), {STATES}),
        (lambda told: told.release(2, state="live"), {STATES}),
        (lambda told: told.step(2, exit_code=0), {V3}),
        (lambda told: told.step(1, noticed=Noticed(sent=100, refused=1, users_who_saw_a_failure=1)), {UNNOTICED}),
        (lambda told: told.step(2, noticed=Noticed(sent=50, refused=20, users_who_saw_a_failure=20)), set[str]()),
        (lambda told: told.step(2, noticed=Noticed(sent=50, refused=21, users_who_saw_a_failure=21)), {TOUCHED}),
        (lambda told: told.release(2, stages=()), {TOUCHED}),
        (lambda told: told.step(3, exit_code=0), {V4}),
        (lambda told: told.step(3, noticed=Noticed(sent=9, refused=1, users_who_saw_a_failure=1)), {KIND}),
        (lambda told: told.release(3, closing_reason="Rolled back at 5 %: 3 of 9 (33.3 %) requests failed."), {SLOW}),
        (lambda told: told.release(3, state="live"), {STATES}),
        (lambda told: replace(told, lost=1), {LOST}),
        (lambda told: replace(told, streams_cut=1), {LOST}),
        (lambda told: told.step(4, exit_code=1), {NIGHT}),
        (lambda told: replace(told, left=()), {NIGHT}),
        (lambda told: replace(told, left=("chat-v2-0", "chat-v2-1")), {NIGHT}),
        (lambda told: replace(told, left=("chat-v1-0",)), {NIGHT}),
        (lambda told: told.step(4, noticed=Noticed(sent=20, lost=1, users_who_saw_a_failure=1)), {ASLEEP}),
    ],
)
def test_a_claim_that_did_not_come_true_is_not_made(change: Callable[[Told], Told], untrue: set[str]) -> None:
    """Each thing that can go wrong takes away the claim that it contradicts, and no other."""
    assert change(Told()).untrue == untrue


@pytest.mark.parametrize("begun", [0, 1, 2, 3])
def test_releases_that_never_began_make_no_claim_true(begun: int) -> None:
    """A hub or a store that is gone ends a run before the ledger knows of its release; the report says so in words."""
    told = replace(Told(), releases=Told().releases[:begun], left=())
    assert {STATES, SLOW, NIGHT} <= told.untrue
    assert (V2 in told.untrue) == (begun < 2)
    assert (TOUCHED in told.untrue) == (begun < 3)
