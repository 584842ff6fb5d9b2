"""The links of the chain, each run on its own."""

from uuid import uuid4

import pytest

from blocks.errors import Refused, Unavailable
from blocks.ports.gateway import Split
from flows.mirror import mirror_model
from flows.policy.releases.ledger import ledger_key
from flows.promote import promote_canary
from flows.provision import provision_fleet
from flows.release import release_model
from flows.roll_back import roll_back
from flows.scale_down import scale_down
from flows.scale_up import scale_up
from tests.flows.conftest import REPO, World


def release(revision: str, keep_warm_seconds: float = 0) -> None:
    release_model(
        service="chat",
        repo=REPO,
        revision=revision,
        stages_percent=(100,),
        stage_seconds=0,
        keep_warm_seconds=keep_warm_seconds,
    )


def provision(revision: str) -> None:
    mirror_model(service="chat", repo=REPO, revision=revision)
    provision_fleet(service="chat", repo=REPO, revision=revision)


def test_a_mirror_that_is_there_is_not_made_again(world: World) -> None:
    """The second run writes nothing and returns the same manifest."""
    manifest = mirror_model(service="chat", repo=REPO, revision="v1")
    objects = dict(world.store.objects)
    assert mirror_model(service="chat", repo=REPO, revision="v1") == manifest
    assert world.store.objects == objects
    assert {file.path for file in manifest.files} == {"model.gguf", "README.md"}


def test_provisioning_an_unmirrored_model_is_refused(world: World) -> None:
    """It says what to run first, and leaves no release open."""
    with pytest.raises(Refused, match="run mirror-model"):
        provision_fleet(service="chat", repo=REPO, revision="v1")
    assert world.record.in_progress is None


def test_step_by_step_gives_what_the_chain_gives(live: World) -> None:
    """Mirror, provision and promote by hand; the provisioned fleet has no traffic before it is promoted."""
    provision("v2")
    assert live.gateway.split("chat") == Split(0)
    assert len(live.gateway.servers("chat")) == 4
    promoted = promote_canary(service="chat", stages_percent=(50, 100), stage_seconds=0)
    assert promoted.state == "live"
    assert live.gateway.split("chat").weight_of(promoted.slot) == 10_000


def test_promotion_goes_on_from_the_split_that_stands(live: World) -> None:
    """A promotion that died at 30 % is taken up at 30 %."""
    provision("v2")
    live.gateway.set_split("chat", Split(3000))
    promote_canary(service="chat", stages_percent=(5, 30, 100), stage_seconds=0)
    assert live.gateway.splits[-2:] == [3000, 10_000]


def test_promoting_nothing_is_refused(world: World) -> None:
    """Without a release in progress it says how to start one."""
    with pytest.raises(Refused, match="no release is in progress"):
        promote_canary(service="chat")
    assert not world.gateway.splits


def test_a_second_release_is_refused_while_one_is_under_way(live: World) -> None:
    """The message names the release and the run that hold the service."""
    provision("v2")
    with pytest.raises(Refused, match=r"already has release chat-\w+ in progress"):
        release("v3")
    assert live.record.in_progress is not None


def test_a_release_of_a_run_that_nobody_knows_can_be_taken_over(live: World) -> None:
    """As after Prefect's database was lost: a run that Prefect does not know has ended."""
    provision("v2")
    stranger = str(uuid4())
    found = live.store.get(ledger_key("chat"))
    assert found is not None
    body = found.body.replace(live.record.releases[-1].run_id.encode(), stranger.encode())
    live.store.put(ledger_key("chat"), body, replacing=found.etag)
    assert promote_canary(service="chat", stages_percent=(100,), stage_seconds=0).state == "live"


def test_rolling_back_a_release_under_way_stops_it(live: World) -> None:
    """All traffic to stable, the candidate's replicas gone, the reason in the ledger."""
    provision("v2")
    live.gateway.set_split("chat", Split(3000))
    record = roll_back(service="chat", reason="users complain")
    assert live.gateway.split("chat") == Split(0)
    assert record.releases[-1].closing_reason == "users complain"
    assert len(live.fleet.replicas("chat")) == 2


def test_what_answers_for_a_dead_release_is_not_stopped(live: World) -> None:
    """Rolled back, it has no traffic of its own and goes on running, also at night, until the live one is up again."""
    stables = live.gateway.servers("chat")
    provision("v2")
    for server in stables:
        live.gateway.die("chat", server.slot, server.address)
    with pytest.raises(
        Unavailable, match=r"users complain; no replica of .* go on answering in its place: run scale-up"
    ):
        roll_back(service="chat", reason="users complain")
    assert live.gateway.split("chat") == Split(0)
    assert live.record.releases[-1].state == "rolled back"
    scale_down(service="chat", replicas=2)
    assert len([server for server in live.gateway.servers("chat") if server.state == "up"]) == 2
    live.gateway.dead.clear()
    scale_down(service="chat", replicas=2)  # which attaches the live ones again, and finds them up
    scale_down(service="chat", replicas=2)
    assert {replica.release for replica in live.fleet.replicas("chat")} == {live.first.id}


def test_a_death_that_the_gateway_has_not_seen_yet_counts(live: World) -> None:
    """The live release dies as it is rolled back to, and is still up for the gateway: the candidate is not stopped."""
    provision("v2")
    live.engine.unhealthy = {server.address for server in live.gateway.servers("chat") if server.slot == "blue"}
    with pytest.raises(Unavailable, match=r"users complain; no replica of .* is up"):
        roll_back(service="chat", reason="users complain")
    assert len(live.fleet.replicas("chat")) == 4


def test_a_new_release_has_its_slot_for_itself(live: World) -> None:
    """What was left there to answer for a dead release gets no user of the new one."""
    provision("v2")
    live.gateway.attach("chat", "green", "127.0.0.1:8999", is_tls=False)
    provision("v2")
    running = {replica.address for replica in live.fleet.replicas("chat")}
    assert {server.address for server in live.gateway.servers("chat")} == running


def test_rolling_back_after_promotion_returns_to_the_warm_fleet(live: World) -> None:
    """While the replaced fleet is warm, one command gives it the traffic back."""
    provision("v2")
    promote_canary(service="chat", stages_percent=(100,), stage_seconds=0)
    record = roll_back(service="chat", reason="worse answers")
    assert record.live is not None
    assert live.gateway.split("chat").weight_of(record.live.slot) == 10_000
    assert {replica.release for replica in live.fleet.replicas("chat")} == {record.live.id}


def test_the_night_stops_what_it_does_not_need(live: World) -> None:
    """One of two replicas goes, and the gateway forgets it."""
    stopped = scale_down(service="chat")
    assert len(stopped) == 1
    assert len(live.fleet.replicas("chat")) == 1
    assert [server.address for server in live.gateway.servers("chat")] == [live.fleet.replicas("chat")[0].address]


def test_a_dry_run_stops_nothing(live: World) -> None:
    """It only shows what it would do."""
    assert scale_down(service="chat", dry_run=True) == ()
    assert len(live.fleet.replicas("chat")) == 2


@pytest.mark.parametrize("in_flight", [1, None])
def test_a_busy_replica_stays_and_takes_traffic_again(live: World, in_flight: int | None) -> None:
    """What is in flight, or cannot be known, counts as busy; the run says that it could not do its work."""
    live.engine.in_flight_at = dict.fromkeys((r.address for r in live.fleet.replicas("chat")), in_flight)
    with pytest.raises(Unavailable, match="busy, or could not be asked"):
        scale_down(service="chat", drain_timeout_seconds=0.01)
    assert len(live.fleet.replicas("chat")) == 2
    assert {server.state for server in live.gateway.servers("chat")} == {"up"}


def test_zero_replicas_need_a_word(live: World) -> None:
    """Zero is refused unless `to_zero` says that it is meant."""
    with pytest.raises(Refused, match="to_zero"):
        scale_down(service="chat", replicas=0)
    scale_down(service="chat", replicas=0, to_zero=True)
    assert not live.fleet.replicas("chat")


def test_the_night_leaves_a_release_under_way_alone(live: World) -> None:
    """Only the live release is scaled."""
    provision("v2")
    scale_down(service="chat")
    assert live.record.in_progress is not None
    assert len([r for r in live.fleet.replicas("chat") if r.release == live.record.in_progress.id]) == 2


def test_the_night_clears_away_what_a_dead_release_left(live: World) -> None:
    """A retiring fleet that nobody stopped goes, and its slot is free again."""
    provision("v2")
    promote_canary(service="chat", stages_percent=(100,), stage_seconds=0)
    assert live.record.retiring
    scale_down(service="chat", replicas=2)
    assert not live.record.retiring
    assert len(live.fleet.replicas("chat")) == 2


def test_the_morning_brings_the_replicas_back(live: World) -> None:
    """The missing replica is started and attached; the standing one is adopted."""
    scale_down(service="chat")
    standing = live.fleet.replicas("chat")
    started = scale_up(service="chat")
    assert len(started) == 2
    assert set(standing) < set(live.fleet.replicas("chat"))
    assert {server.address for server in live.gateway.servers("chat")} == {
        replica.address for replica in live.fleet.replicas("chat")
    }


def test_there_is_nothing_to_scale_up_before_the_first_release(world: World) -> None:
    """It says what to do first."""
    with pytest.raises(Refused, match="release a model first"):
        scale_up(service="chat")
    assert not world.fleet.orders


def test_an_unknown_service_is_refused_by_name() -> None:
    """The message names the service and those that there are."""
    with pytest.raises(Refused, match="there is no Service block 'shop'"):
        scale_down(service="shop")
