"""What a person is told of a release beside the one that users have."""

from dataclasses import replace
from datetime import UTC, datetime

from blocks.ports.fleet import EngineBuild, EngineSettings
from flows.policy.releases.differences import differences, engine_in_words, release_before
from flows.policy.releases.ledger import Release, ServiceRecord

BUILD = EngineBuild("vllm", "0.33.0", (("seed", "1"),), (("OMP_NUM_THREADS", "1"),), "a" * 64, (("~/lock", "b" * 64),))
LIVE = Release(
    id="chat-1",
    service="chat",
    repo="maker/model",
    commit="c" * 40,
    engine=EngineSettings(4096, 4, build=BUILD),
    slot="blue",
    state="live",
    run_id="run-1",
    opened_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def made_of(build: EngineBuild | None, **changes: object) -> Release:
    return LIVE.model_copy(update={"id": "chat-2", "engine": replace(LIVE.engine, build=build, **changes)})  # pyright: ignore[reportArgumentType] - of its fields


def test_the_same_differs_in_nothing() -> None:
    """However it is called."""
    assert differences(LIVE, made_of(BUILD)) == ()


def test_each_difference_has_its_line() -> None:
    """Version, flags, environment, task and files, with what is live first."""
    other = replace(
        BUILD,
        version="0.34.0",
        flags=(("max-num-batched-tokens", "8192"), ("seed", "2")),
        environment=(),
        task="d" * 64,
        files=(("~/lock", "e" * 64),),
    )
    assert differences(LIVE, made_of(other, context_tokens=8192)) == (
        "context (tokens): 4096 → 8192",
        "engine: vllm 0.33.0 → vllm 0.34.0",
        "flag --max-num-batched-tokens: not set → 8192",
        "flag --seed: 1 → 2",
        "variable OMP_NUM_THREADS: 1 → not set",
        "task: aaaaaaaaaaaa → dddddddddddd",
        "file ~/lock: bbbbbbbbbbbb → eeeeeeeeeeee",
    )


def test_another_model_is_told_as_well() -> None:
    """Repository and commit, which alone differed before engines were released."""
    other = LIVE.model_copy(update={"repo": "maker/other", "commit": "d" * 40})
    assert differences(LIVE, other) == ("model: maker/model → maker/other", f"commit: {'c' * 40} → {'d' * 40}")


def test_an_engine_that_nobody_recorded_is_said_to_be_so() -> None:
    """As in a release of version 0.1: what it runs, the fleet's block says."""
    assert differences(made_of(None), LIVE) == (
        "engine: not recorded: what the fleet's block says → vllm 0.33.0 --seed 1 OMP_NUM_THREADS=1",
    )
    assert engine_in_words(EngineBuild("")) == "its own task"


def test_a_release_is_compared_with_the_one_whose_users_it_takes() -> None:
    """In progress or rolled back with the live one, and live with the one that it replaced."""
    candidate = made_of(BUILD).model_copy(
        update={"state": "in progress", "opened_at": datetime(2026, 2, 1, tzinfo=UTC)}
    )
    assert release_before(ServiceRecord(releases=(LIVE, candidate)), candidate) == LIVE
    old, new = LIVE.model_copy(update={"state": "retired"}), candidate.model_copy(update={"state": "live"})
    assert release_before(ServiceRecord(releases=(old, new)), new) == old
    assert release_before(ServiceRecord(releases=(LIVE,)), LIVE) is None
