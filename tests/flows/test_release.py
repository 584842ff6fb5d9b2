"""The chain from the hub to the users, and back where it fails."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from prefect.client.schemas.objects import State

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports import Split
from flows.plans import ReleasePlan
from flows.release import release_model
from tests.flows.conftest import GOOD, REPO, World

FAILED = replace(GOOD, status=500)


def plan(revision: str, stages: Sequence[int] = (10, 100), **others: float) -> ReleasePlan:
    return ReleasePlan(
        service="chat",
        repo=REPO,
        revision=revision,
        stages_percent=tuple(stages),
        stage_seconds=0,
        keep_warm_seconds=0,
        **others,  # pyright: ignore[reportArgumentType] - numbers all
    )


def test_the_first_release_takes_the_whole_service(world: World) -> None:
    """Mirrored, two replicas, all traffic, and the ledger says live."""
    release = release_model(plan("v1"))
    assert release.state == "live"
    assert world.gateway.split("chat").share_of(release.slot) == 10_000
    assert len(world.fleet.replicas("chat")) == 2
    assert f"{release.mirror_prefix}manifest.json" in world.store.objects


def test_the_second_release_rises_stage_by_stage_and_retires_the_first(world: World) -> None:
    """Green gets 10 % and then everything; blue's replicas are stopped only then."""
    first = release_model(plan("v1"))
    second = release_model(plan("v2"))
    assert world.gateway.splits == [0, 1000, 10_000]
    assert [stage.verdict for stage in second.stages] == ["promote", "promote"]
    assert {replica.release for replica in world.fleet.replicas("chat")} == {second.id}
    assert world.record.release(first.id).state == "retired"
    assert {server.slot for server in world.gateway.servers("chat")} == {second.slot}


def test_a_bad_release_is_rolled_back_and_says_why(world: World) -> None:
    """Users are back on the first release, the second's replicas are gone, and the run fails in words and numbers."""
    first = release_model(plan("v1"))
    world.users.see("green", FAILED, 30)
    with pytest.raises(SkyferryError, match=r"rolled back at 10 %: 30 of 30 requests failed"):
        release_model(plan("v2"))
    assert world.gateway.split("chat") == Split(0)
    assert {replica.release for replica in world.fleet.replicas("chat")} == {first.id}
    assert world.record.live == world.record.release(first.id)
    assert "30 of 30" in world.record.releases[-1].closing_reason


def test_silence_is_rolled_back_at_the_deadline(world: World) -> None:
    """A stage in which nobody calls is no success."""
    release_model(plan("v1"))
    world.users.see("green", GOOD, 0)
    with pytest.raises(SkyferryError, match="not passed within"):
        release_model(plan("v2", stage_deadline_seconds=0.01))
    assert world.gateway.split("chat") == Split(0)


def test_a_replica_that_never_gets_ready_fails_the_release_and_is_taken_down(world: World) -> None:
    """The reason carries the replica's last words, and the service is as it was."""
    first = release_model(plan("v1"))
    release_id = world.record.releases[0].id
    world.engine.never_ready = _ids_after(world, release_id)
    with pytest.raises(Refused, match=r"(?s)not ready within.*last words.*is served at"):
        release_model(plan("v2", ready_timeout_seconds=0.01))
    assert {replica.release for replica in world.fleet.replicas("chat")} == {first.id}
    assert world.record.under_way is None


def test_a_corrupted_byte_publishes_nothing(world: World) -> None:
    """No object, no manifest, no replica, and no release under way."""
    world.hub.corrupted.add("model.gguf")
    with pytest.raises(Refused, match=r"model\.gguf: sha256 is"):
        release_model(plan("v1"))
    assert not [key for key in world.store.objects if key.endswith((".gguf", "manifest.json"))]
    assert not world.fleet.replicas("chat")
    assert world.record.under_way is None


def test_what_can_pass_is_tried_again(world: World) -> None:
    """A hub that fails once, and one that breaks off in the middle of a file, delay a release and no more."""
    world.hub.failures.append(Unavailable("busy"))
    world.hub.cut_short.append("model.gguf")
    assert release_model(plan("v1")).state == "live"


def test_a_release_that_stands_already_changes_nothing(world: World) -> None:
    """Releasing the same thing again starts nothing and moves no traffic."""
    release = release_model(plan("v1"))
    orders = len(world.fleet.orders)
    assert release_model(plan("v1")) == release
    assert len(world.fleet.orders) == orders


def test_an_unknown_model_is_refused_before_anything_starts(world: World) -> None:
    """The message names the model; the ledger is untouched."""
    with pytest.raises(Refused, match="nobody/nothing"):
        release_model(plan("v1").model_copy(update={"repo": "nobody/nothing"}))
    assert not world.record.releases
    assert not world.fleet.orders


def test_a_store_without_write_permission_is_refused_before_anything_starts(world: World) -> None:
    """Nothing was launched."""
    world.store.refuses_writes = True
    with pytest.raises(Refused, match="may only be read"):
        release_model(plan("v1"))
    assert not world.fleet.orders


def test_the_run_ends_in_a_state_that_tells_the_truth(world: World) -> None:
    """Failed, with the gate's reason in the message that the UI shows."""
    release_model(plan("v1"))
    world.users.see("green", FAILED, 30)
    state: State = release_model(plan("v2"), return_state=True)
    assert state.is_failed()
    assert "30 of 30 requests failed" in (state.message or "")


def _ids_after(world: World, known: str) -> set[str]:
    """All that are not the known one, whatever their ids will be."""

    class AllBut(set[str]):
        def __contains__(self, release: object) -> bool:
            return release != known

    assert world.record.releases
    return AllBut()
