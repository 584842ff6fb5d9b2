"""The chain from the hub to the users, and back where it fails."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from prefect.client.schemas.objects import State

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports.gateway import Split
from flows.policy.releases.ledger import back_out, ledger_key
from flows.policy.releases.replay import replay
from flows.promote import promote_canary
from flows.release import release_model
from tests.flows.conftest import GOOD, REPO, World
from tests.flows.test_steps import provision

FAILED = replace(GOOD, status=500)


def plan(revision: str, stages: Sequence[int] = (10, 100), **others: Any) -> dict[str, Any]:
    return {
        "service": "chat",
        "repo": REPO,
        "revision": revision,
        "stages_percent": tuple(stages),
        "stage_seconds": 0,
        "keep_warm_seconds": 0,
        **others,
    }


def test_the_first_release_takes_the_whole_service(world: World) -> None:
    """Mirrored, two replicas, all traffic, and the ledger says live."""
    release = release_model(**plan("v1"))
    assert release.state == "live"
    assert world.gateway.split("chat").weight_of(release.slot) == 10_000
    assert len(world.fleet.replicas("chat")) == 2
    assert f"{release.mirror_prefix}skyferry-manifest.json" in world.store.objects


def test_the_second_release_rises_stage_by_stage_and_retires_the_first(live: World) -> None:
    """Green gets nothing, 10 % and then everything; blue's replicas are stopped only then."""
    first = live.first
    second = release_model(**plan("v2"))
    assert live.gateway.splits == [0, 0, 1000, 10_000]
    assert [stage.verdict for stage in second.stages] == ["promote", "promote"]
    assert {replica.release for replica in live.fleet.replicas("chat")} == {second.id}
    assert live.record.release(first.id).state == "retired"
    assert {server.slot for server in live.gateway.servers("chat")} == {second.slot}


def test_a_bad_release_is_rolled_back_and_says_why(live: World) -> None:
    """Users are back on the first release, the second's replicas are gone, and the run fails in words and numbers."""
    first = live.first
    live.users.see("green", FAILED, 30)
    with pytest.raises(SkyferryError, match=r"Rolled back at 10 %: 30 of 30 \(100.0 %\) requests failed"):
        release_model(**plan("v2"))
    assert live.gateway.split("chat") == Split(0)
    assert {replica.release for replica in live.fleet.replicas("chat")} == {first.id}
    assert live.record.live == live.record.release(first.id)
    assert "30 of 30" in live.record.releases[-1].closing_reason


def test_a_bad_replica_is_held_back_and_a_good_model_goes_on(live: World) -> None:
    """One of two replicas fails a tenth: it gets no more requests, and the release passes with the other."""
    live.gateway.on_next_look.append(lambda: live.users.failing.add(candidates(live)[0]))
    second = release_model(**plan("v2"))
    assert second.state == "live"
    states = {server.address: server.state for server in live.gateway.servers("chat")}
    assert [states[address] for address in candidates(live)] == ["draining", "up"]
    assert [stage.evidence.dropped for stage in second.stages if stage.evidence] == [(f"{second.id}-0",), ()]


def test_a_stage_keeps_what_the_engines_did(live: World) -> None:
    """Of the candidate and of the live release, apart; one that says nothing is told as silent."""
    live.engine.in_flight_at["127.0.0.1:9002"] = None  # the next replica's
    (_, last) = release_model(**plan("v2")).stages
    assert last.engines is not None
    assert (last.engines.candidate.replicas, last.engines.candidate.silent) == (2, 1)
    assert (last.engines.stable.replicas, last.engines.stable.silent) == (2, 0)


def stables(world: World) -> list[str]:
    """The addresses of the first release's replicas."""
    return [
        replica.address for replica in world.fleet.replicas("chat") if replica.release == world.record.releases[0].id
    ]


def test_no_share_is_given_that_stable_could_not_take_back(live: World) -> None:
    """One of its replicas drains: the candidate gets nothing, and is rolled back once the stage's time is over."""
    provision("v2")
    live.gateway.drain("chat", "blue", stables(live)[0])
    with pytest.raises(
        SkyferryError, match=r"before 10 %: .* 1 of its 2 replicas are up \(127.0.0.1:900[01] is draining"
    ):
        promote_canary(service="chat", stages_percent=(10, 100), stage_seconds=0, stage_deadline_seconds=0.01)
    assert 1000 not in live.gateway.splits


def test_a_queue_at_stable_bars_the_way_back(live: World) -> None:
    """More wait than it answers at a time: it has no room for what the candidate would give back."""
    live.engine.waiting_at[stables(live)[0]] = 9
    with pytest.raises(SkyferryError, match="9 requests wait at its replicas, which answer 8 at a time"):
        release_model(**plan("v2", stage_deadline_seconds=0.01))


def test_a_stage_that_has_passed_waits_for_the_way_back(live: World) -> None:
    """Stable loses a replica meanwhile: the share does not rise, users are still looked at, and then it goes on."""
    (lost, _) = stables(live)
    live.gateway.on_next_look += [  # the last one first: the look before the first stage counts what comes
        lambda: live.gateway.attach("chat", "blue", lost, is_tls=False),
        lambda: None,
        lambda: live.gateway.drain("chat", "blue", lost),
        lambda: None,
    ]
    release = release_model(**plan("v2"))
    assert release.state == "live"
    assert release.stages[0].evidence is not None
    assert release.stages[0].evidence.stable_requests > 9000  # three looks', where two would have done


def test_a_stage_without_a_way_back_is_rolled_back_at_its_deadline(live: World) -> None:
    """Though its gates had passed it; a replay says the same, for the ledger keeps what barred it."""
    (lost, _) = stables(live)
    live.gateway.on_next_look += [lambda: live.gateway.drain("chat", "blue", lost), lambda: None]
    with pytest.raises(SkyferryError, match=r"Rolled back at 10 %: not passed within .* could not take its traffic"):
        release_model(**plan("v2", stage_deadline_seconds=1))
    (stage,) = live.record.releases[-1].stages
    assert replay(stage, {}).words.text == stage.reason


def candidates(world: World) -> list[str]:
    """The addresses of the last release's replicas, in order of their names."""
    last = world.record.releases[-1].id
    return [replica.address for replica in world.fleet.replicas("chat") if replica.release == last]


SLOWER = replace(GOOD, first_token_ms=100)
"""Twice as late as stable's."""


def test_limits_of_a_release_stand_over_those_of_its_service(live: World) -> None:
    """What is too slow for the service can be allowed for once; the ledger keeps what was allowed."""
    live.users.see("green", SLOWER)
    with pytest.raises(SkyferryError, match=r"Rolled back at 10 %: .*time to first token"):
        release_model(**plan("v2"))
    allowed = release_model(**plan("v3", limits={"slower_than_stable": 3}))
    assert allowed.state == "live"
    assert [stage.limits and stage.limits.slower_than_stable for stage in allowed.stages] == [3, 3]


@pytest.mark.parametrize(
    ("limits", "words"), [({"sharpness": 1}, "limits has sharpness; there are .*"), ({"error_percent": 0.1}, "margin")]
)
def test_limits_that_cannot_be_are_refused_before_anything_starts(
    live: World, limits: dict[str, float], words: str
) -> None:
    """One that there is not, and one that contradicts another of the service."""
    orders = len(live.fleet.orders)
    with pytest.raises(Refused, match=words):
        release_model(**plan("v2", limits=limits))
    assert len(live.fleet.orders) == orders
    assert len(live.record.releases) == 1


def test_silence_is_rolled_back_at_the_deadline(live: World) -> None:
    """A stage in which nobody calls is no success."""
    live.users.see("blue", GOOD, 0)
    live.users.see("green", GOOD, 0)
    with pytest.raises(SkyferryError, match="not passed within"):
        release_model(**plan("v2", stage_deadline_seconds=0.01))
    assert live.gateway.split("chat") == Split(0)


def test_a_replica_that_never_gets_ready_fails_the_release_and_is_taken_down(live: World) -> None:
    """The reason carries the replica's last words, and the service is as it was."""
    first = live.first
    release_id = live.record.releases[0].id
    live.engine.never_ready = _ids_after(live, release_id)
    with pytest.raises(Refused, match=r"(?s)not ready within.*last words.*is served at"):
        release_model(**plan("v2", ready_timeout_seconds=0.01))
    assert {replica.release for replica in live.fleet.replicas("chat")} == {first.id}
    assert live.record.in_progress is None


def test_a_corrupted_byte_publishes_nothing(world: World) -> None:
    """No object, no manifest, no replica, and no release in progress."""
    world.hub.corrupted.add("model.gguf")
    with pytest.raises(Refused, match=r"model\.gguf: its sha256 is .* read once more"):
        release_model(**plan("v1"))
    assert not [key for key in world.store.objects if key.endswith((".gguf", "manifest.json"))]
    assert not world.fleet.replicas("chat")
    assert world.record.in_progress is None


def test_what_can_pass_is_tried_again(world: World) -> None:
    """A hub that fails once, and one that breaks off in the middle of a file, delay a release and no more."""
    world.hub.failures.append(Unavailable("busy"))
    world.hub.cut_short.append("model.gguf")
    assert release_model(**plan("v1")).state == "live"


def test_a_release_that_stands_already_changes_nothing(live: World) -> None:
    """Releasing the same thing again starts nothing and moves no traffic."""
    release = live.first
    replicas = live.fleet.replicas("chat")
    assert release_model(**plan("v1")) == release
    assert live.fleet.replicas("chat") == replicas


def test_a_release_whose_replicas_are_gone_gets_them_back(live: World) -> None:
    """As after a restart of the machine: it is live in the ledger, and its run makes that true."""
    release = live.first
    live.fleet.running.clear()
    for server in live.gateway.servers("chat"):
        live.gateway.die("chat", server.slot, server.address)
    assert release_model(**plan("v1")) == release
    assert {server.address for server in live.gateway.servers("chat")} == {
        replica.address for replica in live.fleet.replicas("chat")
    }
    assert len(live.fleet.replicas("chat")) == 2


def test_one_replica_that_fails_leaves_no_other_behind(live: World) -> None:
    """Its sibling, which may still be starting, is waited for and then stopped with it."""
    before = live.fleet.replicas("chat")
    live.fleet.launch_failures.append(Refused("no such card"))
    with pytest.raises(Refused, match="no such card"):
        release_model(**plan("v2"))
    assert live.fleet.replicas("chat") == before


def test_a_share_left_over_from_an_earlier_release_is_not_inherited(live: World) -> None:
    """The next candidate begins without traffic, whatever stands in the split of its slot."""
    live.gateway.set_split("chat", Split(3000))
    release_model(**plan("v2"))
    assert live.gateway.splits[-3:] == [0, 1000, 10_000]


def test_a_gateway_that_says_no_is_found_out_before_anything_starts(world: World) -> None:
    """Nothing is launched, and no release is open."""
    world.gateway.says_no = True
    with pytest.raises(Refused, match="certificates do not fit"):
        release_model(**plan("v1"))
    assert not world.fleet.orders
    assert world.record.in_progress is None


def test_a_log_that_cannot_be_read_is_no_news(live: World) -> None:
    """The stage goes on when it can be read again; until then it neither passes nor begins anew."""
    live.gateway.log_failures.append(Unavailable("no connection"))
    release = release_model(**plan("v2"))
    assert [stage.share_percent for stage in release.stages] == [10, 100]


def test_a_log_that_can_never_be_read_is_no_pass(live: World) -> None:
    """At its deadline the stage is rolled back, whatever was seen before."""
    live.gateway.log_failures.extend(Unavailable("no connection") for _ in range(9))
    with pytest.raises(SkyferryError, match=r"not passed within.*0 of the 20 requests"):
        release_model(**plan("v2", stage_deadline_seconds=0.001))
    assert live.gateway.split("chat") == Split(0)


def test_a_release_that_went_live_without_its_traffic_gets_it(live: World) -> None:
    """As where the run that made it live was killed by an error it did not see through."""
    live.gateway.set_split("chat", Split(10_000))
    release_model(**plan("v1"))
    assert live.gateway.split("chat") == Split(0)


def test_releasing_the_live_one_again_leaves_a_canary_its_share(live: World) -> None:
    """Another release is in progress with a share of its own, and that is not this run's to take."""
    provision("v2")
    live.gateway.set_split("chat", Split(3000))
    release_model(**plan("v1"))
    assert live.gateway.split("chat") == Split(3000)


def test_a_roll_back_by_hand_ends_the_run_that_promotes(live: World) -> None:
    """The promoting run sees within a look that the release is no longer its own, and leaves no traffic on it."""
    live.users.see("green", GOOD, 1)  # too few to pass

    def roll_back_by_hand() -> None:
        record = live.record
        assert record.in_progress is not None
        after = back_out(record, record.in_progress.id, "by hand")
        found = live.store.get(ledger_key("chat"))
        assert found is not None
        live.store.put(ledger_key("chat"), after.model_dump_json().encode(), replacing=found.etag)

    live.gateway.on_next_look.append(roll_back_by_hand)
    with pytest.raises(Refused, match="no longer acts"):
        release_model(**plan("v2"))
    assert live.gateway.split("chat") == Split(0)
    assert live.record.releases[-1].closing_reason == "by hand"


def test_an_unknown_model_is_refused_before_anything_starts(world: World) -> None:
    """The message names the model; the ledger is untouched."""
    with pytest.raises(Refused, match="nobody/nothing"):
        release_model(**{**plan("v1"), "repo": "nobody/nothing"})
    assert not world.record.releases
    assert not world.fleet.orders


def test_a_store_without_write_permission_is_refused_before_anything_starts(world: World) -> None:
    """Nothing was launched."""
    world.store.refuses_writes = True
    with pytest.raises(Refused, match="may only be read"):
        release_model(**plan("v1"))
    assert not world.fleet.orders


def test_the_run_ends_in_a_state_that_tells_the_truth(live: World) -> None:
    """Failed, with the gate's reason in the message that the UI shows."""
    live.users.see("green", FAILED, 30)
    state = cast("State", release_model(**plan("v2", return_state=True)))
    assert state.is_failed()
    assert "30 of 30 (100.0 %) requests failed" in (state.message or "")


def _ids_after(world: World, known: str) -> set[str]:
    """All that are not the known one, whatever their ids will be."""

    class AllBut(set[str]):
        def __contains__(self, release: object) -> bool:
            return release != known

    assert world.record.releases
    return AllBut()
