"""What happens while nobody looks: runs that are cancelled, nights, replicas that die or hang by day."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from functools import partial

import pytest
from prefect.exceptions import TerminationSignal

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports.fleet import Replica
from blocks.ports.gateway import WHOLE, Split
from flows.mirror import mirror_model
from flows.plans import (
    MirrorPlan,
    PromotePlan,
    ProvisionPlan,
    ReapPlan,
    ReconcilePlan,
    RollBackPlan,
    ScaleDownPlan,
    ScaleUpPlan,
)
from flows.policy.placement.plan import PlacementRules
from flows.policy.releases.ledger import ServiceRecord, ledger_key
from flows.promote import promote_canary
from flows.provision import provision_fleet
from flows.reap import reap_orphans
from flows.reconcile import reconcile
from flows.release import release_model
from flows.roll_back import roll_back
from flows.runtime.sleep import sleeping_with
from flows.scale_down import scale_down
from flows.scale_up import scale_up
from tests.flows.conftest import REPO, World
from tests.flows.test_release import plan
from tests.flows.test_steps import provision

RECONCILE = ReconcilePlan(service="chat", ready_timeout_seconds=0.05)


def rewrite(world: World, change: Callable[[ServiceRecord], ServiceRecord]) -> None:
    """As another run does meanwhile."""
    found = world.store.get(ledger_key("chat"))
    assert found is not None
    world.store.put(ledger_key("chat"), change(world.record).model_dump_json().encode(), replacing=found.etag)


def names(world: World) -> set[str]:
    return {replica.name for replica in world.fleet.replicas("chat")}


def states(world: World) -> dict[str, str]:
    return {server.address: server.state for server in world.gateway.servers("chat")}


# --- Cancelled while replicas start ----------------------------------------------------------------------------------


@contextmanager
def surviving_sigterm() -> Iterator[Callable[[], None]]:
    """Prefect's own handler ends a flow and then asks the one before it, which would end the tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


class Once:
    """Does something the first time it is called, whoever calls it."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._acts = [act]

    def __call__(self, *_: object) -> None:
        if self._acts:
            self._acts.pop()()


def test_a_run_cancelled_while_replicas_start_leaves_none(live: World) -> None:
    """The ledger gives the release up at once, and what still starts, for as long as it likes, is stopped."""
    first = live.first
    live.engine.never_ready = {"any"}
    live.fleet.on_launch = lambda order: live.engine.never_ready.add(order.release)
    with (
        surviving_sigterm() as cancel,
        sleeping_with(Once(cancel)),
        pytest.raises(TerminationSignal),
    ):
        release_model(plan("v2", ready_timeout_seconds=1800))
    assert live.record.releases[-1].state == "rolled back"
    assert live.record.releases[-1].closing_reason == "its run was ended from outside"
    assert {replica.release for replica in live.fleet.replicas("chat")} == {first.id}
    assert live.gateway.split("chat") == Split(0)


def test_a_launch_that_is_done_after_the_release_was_given_up_stops_its_own(live: World) -> None:
    """A cloud that takes minutes for a machine: nothing is listed when the guard looks, and it comes all the same."""
    first = live.first
    with surviving_sigterm() as cancel:
        cancel_once = Once(cancel)

        def launch(_: object) -> None:
            cancel_once()
            while live.record.in_progress is not None:
                pass  # the guard is at it in the main thread

        live.fleet.on_launch = launch
        with pytest.raises(TerminationSignal):
            release_model(plan("v2"))
    assert live.record.releases[-1].state == "rolled back"
    assert {replica.release for replica in live.fleet.replicas("chat")} == {first.id}


def test_a_roll_back_by_hand_ends_a_start_that_goes_on(live: World) -> None:
    """Long before it is ready, or out of time."""
    first = live.first
    live.fleet.on_launch = lambda order: live.engine.never_ready.add(order.release)

    def by_hand() -> None:
        rewrite(
            live, lambda record: record.with_release(record.releases[-1].model_copy(update={"state": "rolled back"}))
        )

    with sleeping_with(Once(by_hand)), pytest.raises(Refused, match=r"is rolled back, so .* is not started"):
        release_model(plan("v2", ready_timeout_seconds=1800))
    assert {replica.release for replica in live.fleet.replicas("chat")} == {first.id}


# --- Nothing that answers users alone is ended by a schedule ---------------------------------------------------------


def rolled_back_and_alone(live: World) -> set[str]:
    """A candidate was rolled back while no replica of the live release was up; its replicas, by name."""
    provision("v2")
    for server in live.gateway.servers("chat"):
        if server.slot == "blue":
            live.gateway.die("chat", server.slot, server.address)
            live.engine.unhealthy.add(server.address)
    with pytest.raises(Unavailable, match="go on answering in its place"):
        roll_back(RollBackPlan(service="chat", reason="users complain"))
    return {replica.name for replica in live.fleet.replicas("chat") if replica.release != live.first.id}


def test_what_alone_answers_users_is_not_reaped(live: World) -> None:
    """Though its release was given up; once the live one is up again, it goes."""
    alone = rolled_back_and_alone(live)
    assert reap_orphans(ReapPlan(service="chat", grace_seconds=0, dry_run=False)).replicas == ()
    assert alone < names(live)
    live.gateway.dead.clear()
    live.engine.unhealthy.clear()
    scale_up(ScaleUpPlan(service="chat"))
    reaped = reap_orphans(ReapPlan(service="chat", grace_seconds=0, dry_run=False)).replicas
    assert {replica.name for replica in reaped} == alone
    assert {replica.release for replica in live.fleet.replicas("chat")} == {live.first.id}


def test_a_stranger_that_alone_answers_is_not_reaped(live: World) -> None:
    """The ledger does not know it, and users do."""
    stranger = Replica("stranger-0", "chat", "stranger", "here", "127.0.0.1:8999", launched_at=0)
    live.fleet.running[live.fleet.installation, "stranger-0"] = stranger
    live.gateway.attach("chat", "green", stranger.address, is_tls=False)
    for server in live.gateway.servers("chat"):
        if server.slot == "blue":
            live.gateway.die("chat", server.slot, server.address)
    assert reap_orphans(ReapPlan(service="chat", grace_seconds=0, dry_run=False)).replicas == ()
    assert "stranger-0" in names(live)


def test_the_old_fleet_is_not_retired_while_it_alone_answers(live: World) -> None:
    """The new release is live and dies in the warm time: the old one's replicas are its users' last ones."""

    def die_in_the_warm_time(seconds: float) -> None:
        if seconds == 900:
            live.engine.unhealthy |= {s.address for s in live.gateway.servers("chat") if s.slot == "green"}

    warm = plan("v2").model_copy(update={"keep_warm_seconds": 900})
    with sleeping_with(die_in_the_warm_time), pytest.raises(SkyferryError, match=r"nobody but .* answers the users of"):
        release_model(warm)
    assert len([r for r in live.fleet.replicas("chat") if r.release == live.first.id]) == 2


def test_a_service_without_users_keeps_nothing_alive(live: World) -> None:
    """Scaled to zero by intent, there is nobody whom the last orphan would have to answer."""
    scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True))
    stranger = Replica("stranger-0", "chat", "stranger", "here", "127.0.0.1:8999", launched_at=0)
    live.fleet.running[live.fleet.installation, "stranger-0"] = stranger
    live.gateway.attach("chat", "green", stranger.address, is_tls=False)
    reap_orphans(ReapPlan(service="chat", grace_seconds=0, dry_run=False))
    assert not names(live)


# --- The night -------------------------------------------------------------------------------------------------------


def test_the_night_leaves_stable_whole_while_a_candidate_has_a_share(live: World) -> None:
    """Half of stable was stopped in the middle of a stage, and the good candidate was rolled back for it."""
    provision("v2")
    live.gateway.set_split("chat", Split(3000))
    assert scale_down(ScaleDownPlan(service="chat")) == ()
    assert len(names(live)) == 4
    assert live.record.wanted is None  # it was not done, so nothing says that it was


def test_a_night_in_the_middle_of_a_release_does_not_bar_its_way(live: World) -> None:
    """Between two looks at a stage: the share rises, and the release goes on."""

    def night() -> None:
        scale_down(ScaleDownPlan(service="chat"))

    live.gateway.on_next_look.append(lambda: None)
    live.gateway.on_next_look.insert(0, night)
    assert release_model(plan("v2")).state == "live"


def test_the_morning_and_the_night_say_what_they_ask_for(live: World) -> None:
    """The ledger keeps the number, so that whoever brings back what died knows how many."""
    scale_down(ScaleDownPlan(service="chat"))
    assert live.record.wanted == 1
    scale_up(ScaleUpPlan(service="chat"))
    assert live.record.wanted is None
    scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True))
    assert (live.record.wanted, live.record.has_users) == (0, False)


def test_a_new_release_asks_for_as_many_as_by_day(live: World) -> None:
    """Released at night, it has them all, and it keeps them."""
    scale_down(ScaleDownPlan(service="chat"))
    assert release_model(plan("v2")).state == "live"
    assert live.record.wanted is None
    live.fleet.kill(f"{live.record.releases[-1].id}-1")
    assert len(reconcile(RECONCILE)) == 1


def test_a_name_to_keep_that_nobody_has_is_refused(live: World) -> None:
    """Misspelt, so what was meant would go; one that has died, or a release that has ended, is no mistake."""
    (first, second) = sorted(names(live))
    with pytest.raises(Refused, match=rf"keep has 'chat-x'.* there are .*{first}"):
        scale_down(ScaleDownPlan(service="chat", keep=(second, "chat-x")))
    assert names(live) == {first, second}
    live.fleet.kill(first)
    assert scale_down(ScaleDownPlan(service="chat", keep=(first, live.first.id))) == ()


# --- What was asked for holds ----------------------------------------------------------------------------------------


def test_nothing_is_done_where_nothing_is_missing(live: World) -> None:
    """It looks, and that is all."""
    before, orders = live.fleet.replicas("chat"), len(live.fleet.orders)
    assert reconcile(RECONCILE) == ()
    assert (live.fleet.replicas("chat"), len(live.fleet.orders)) == (before, orders)


def test_a_replica_that_died_by_day_is_brought_back(live: World) -> None:
    """With the release's own engine, in its own slot; the gateway forgets where the dead one was."""
    (lost, kept) = live.fleet.replicas("chat")
    live.fleet.kill(lost.name)
    live.gateway.die("chat", "blue", lost.address)
    (started,) = reconcile(RECONCILE)
    assert started.replica.name == lost.name
    assert live.fleet.orders[-1].engine == live.first.engine
    assert states(live) == {started.replica.address: "up", kept.address: "up"}
    assert reconcile(RECONCILE) == ()


def test_what_a_fleet_does_not_list_goes_on_answering(live: World) -> None:
    """It was detached while users were with it, though it is up; once it is down, it goes."""
    (left_out, listed) = live.fleet.replicas("chat")
    live.fleet.unlisted = {left_out.name}
    with pytest.raises(Unavailable, match="1 of the 2 replicas"):
        reconcile(RECONCILE)
    scale_up(ScaleUpPlan(service="chat"))
    assert states(live) == {left_out.address: "up", listed.address: "up"}
    live.gateway.die("chat", "blue", left_out.address)
    with pytest.raises(Unavailable):
        reconcile(RECONCILE)
    assert states(live) == {listed.address: "up"}
    live.gateway.dead.clear()
    live.fleet.unlisted = set()
    scale_up(ScaleUpPlan(service="chat"))
    assert states(live) == {left_out.address: "up", listed.address: "up"}


def test_what_is_left_in_a_slot_gets_no_candidate_s_traffic(live: World) -> None:
    """Nobody lists it, and it is up: what it answers would be laid on the candidate."""
    live.gateway.attach("chat", "green", "127.0.0.1:8999", is_tls=False)
    provision("v2")
    assert "127.0.0.1:8999" not in states(live)
    assert len(states(live)) == 4


@pytest.mark.parametrize("number", [0, 1])
def test_the_night_s_number_is_the_number(live: World, number: int) -> None:
    """One is left of two, and nobody brings the other back; where that one dies, one comes back and not two."""
    kept = live.fleet.replicas("chat")[number].name
    live.engine.unhealthy = {replica.address for replica in live.fleet.replicas("chat") if replica.name != kept}
    scale_down(ScaleDownPlan(service="chat", even_if_busy=True))
    live.engine.unhealthy = set()
    assert names(live) == {kept}
    assert reconcile(RECONCILE) == ()
    live.fleet.kill(kept)
    assert len(reconcile(RECONCILE)) == 1
    assert len(names(live)) == 1


def test_zero_by_intent_stays_zero(live: World) -> None:
    """Nobody brings back what a person has switched off."""
    scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True))
    assert reconcile(RECONCILE) == ()
    assert not names(live)


def test_nothing_is_live_before_the_first_release(world: World) -> None:
    """Nor is that an error, each minute."""
    assert reconcile(RECONCILE) == ()
    assert not world.fleet.orders


def test_a_release_under_way_is_its_own_run_s(live: World) -> None:
    """Who holds its stage measures stable, and waits for the way back; nobody else puts replicas there meanwhile."""
    seen: list[object] = []

    def die_and_reconcile() -> None:
        lost = next(r for r in live.fleet.replicas("chat") if r.release == live.first.id)
        live.fleet.kill(lost.name)
        seen.append(reconcile(RECONCILE))
        live.fleet.running[live.fleet.installation, lost.name] = lost

    live.gateway.on_next_look.append(die_and_reconcile)
    release_model(plan("v2"))
    assert seen == [()]


def test_a_share_that_nobody_watches_is_said(live: World) -> None:
    """The run that held the stage was killed: each minute somebody says so, until a person decides."""
    provision("v2")
    assert reconcile(RECONCILE) == ()  # provisioned, without a share, is nothing to say
    live.gateway.set_split("chat", Split(3000))
    with pytest.raises(Unavailable, match=r"has 30 % of the traffic of chat, .* nobody watches it: .* roll-back"):
        reconcile(RECONCILE)
    assert live.gateway.split("chat") == Split(3000)


def test_what_cannot_be_had_is_said_and_tried_again(live: World) -> None:
    """At dawn with room for one of two: that one serves, the run says what is missing, and the next ones try again."""
    scale_down(ScaleDownPlan(service="chat"))
    live.fleet.says_no["here"] = "no machine is left"
    with pytest.raises(SkyferryError, match="no machine is left"):
        scale_up(ScaleUpPlan(service="chat"))
    assert list(states(live).values()) == ["up"]
    with pytest.raises(
        Unavailable, match=r"1 of the 2 replicas of chat-\w+ .* serve, since .*no machine is left.*again"
    ):
        reconcile(RECONCILE)
    orders = len(live.fleet.orders)
    assert reconcile(RECONCILE) == ()  # not within a minute: the cell has said no
    assert len(live.fleet.orders) == orders
    rewrite(live, partial(_long_ago))
    live.fleet.says_no.clear()
    assert len(reconcile(RECONCILE)) == 1
    assert list(states(live).values()) == ["up", "up"]
    assert live.record.shortage is not None
    rewrite(live, partial(_long_ago))
    assert reconcile(RECONCILE) == ()
    assert live.record.shortage is None  # they have served for long enough


def test_what_dies_as_soon_as_it_is_back_is_not_started_each_minute(live: World) -> None:
    """Its machine is paid for each time: the pauses grow as where nothing can be had."""
    (lost, _) = live.fleet.replicas("chat")
    live.fleet.kill(lost.name)
    assert len(reconcile(RECONCILE)) == 1
    live.fleet.kill(lost.name)
    assert reconcile(RECONCILE) == ()  # not within a minute
    rewrite(live, partial(_long_ago))
    assert len(reconcile(RECONCILE)) == 1
    assert live.record.shortage is not None
    assert live.record.shortage.tries == 2


def _long_ago(record: ServiceRecord) -> ServiceRecord:
    """The last try was before the last pause between two of them was over."""
    assert record.shortage is not None
    earlier = record.shortage.model_copy(update={"last_try_at": record.shortage.last_try_at - timedelta(hours=1)})
    return record.model_copy(update={"shortage": earlier})


def test_its_own_cap_holds(live: World) -> None:
    """What the release was allowed to cost is what it may cost by day."""
    rules = PlacementRules(max_dollars_per_hour=0.6)
    rewrite(live, lambda record: record.with_release(record.releases[0].model_copy(update={"placement": rules})))
    live.fleet.kill(f"{live.first.id}-1")
    with pytest.raises(Unavailable, match=r"1 of the 2 replicas .* serve"):
        reconcile(RECONCILE)
    assert names(live) == {f"{live.first.id}-0"}


def test_two_at_once_start_one(live: World) -> None:
    """A second one begins while the first waits for its replica: both adopt the same."""
    lost = live.fleet.replicas("chat")[0]
    live.fleet.kill(lost.name)
    live.gateway.die("chat", "blue", lost.address)
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(copy_context().run, reconcile, RECONCILE) for _ in range(2)]
        assert all(run.exception() is None for run in runs)
    assert len(names(live)) == 2
    assert list(states(live).values()) == ["up", "up"]


def test_a_start_that_the_night_makes_needless_ends(live: World) -> None:
    """A replica is on its way back as the night asks for one only: it is not started beside the one that stays."""
    (lost, kept) = live.fleet.replicas("chat")
    live.fleet.kill(lost.name)
    live.fleet.on_launch = lambda _: rewrite(live, lambda record: record.model_copy(update={"wanted": 1}))
    assert reconcile(RECONCILE) == ()
    assert names(live) == {kept.name}
    assert live.record.shortage is None  # none is missing, and the next try of the night must not wait for this one


def test_a_release_that_goes_live_while_the_old_one_is_brought_back_has_no_shortage(live: World) -> None:
    """What is missing of the old one is missed by nobody by then."""
    live.fleet.kill(live.fleet.replicas("chat")[0].name)

    def replaced(record: ServiceRecord) -> ServiceRecord:
        old = record.releases[0]
        new = old.model_copy(update={"id": "chat-new", "slot": "green", "run_id": "another"})
        return record.with_release(old.model_copy(update={"state": "retiring"})).with_release(new)

    live.fleet.on_launch = lambda _: rewrite(live, replaced)
    assert reconcile(RECONCILE) == ()
    assert live.record.shortage is None


# --- Two at once -----------------------------------------------------------------------------------------------------


def _dies(live: World, replica: Replica) -> None:
    live.fleet.kill(replica.name)
    live.gateway.die("chat", "blue", replica.address)


def _is_taken_out_by_another_run(live: World, replica: Replica) -> None:
    live.gateway.drain("chat", "blue", replica.address)


@pytest.mark.parametrize("lose", [_dies, _is_taken_out_by_another_run])
def test_what_drains_takes_traffic_again_where_the_one_that_stays_is_lost(
    live: World, lose: Callable[[World, Replica], None]
) -> None:
    """An answer may take a quarter of an hour to end, and whoever was to stay dies in it, or another night takes it."""
    (kept, going) = live.fleet.replicas("chat")
    live.engine.in_flight_at[going.address] = 1

    def lose_the_other() -> None:
        lose(live, kept)
        live.engine.in_flight_at[going.address] = 0

    with sleeping_with(Once(lose_the_other)), pytest.raises(Unavailable, match=rf"nobody but {going.name} answers"):
        scale_down(ScaleDownPlan(service="chat"))
    assert going.name in names(live)
    assert states(live)[going.address] == "up"


def test_what_somebody_puts_back_while_it_drains_stays(live: World) -> None:
    """The morning, or whoever brings replicas back, sends it requests: they would be lost with it."""
    (_, going) = live.fleet.replicas("chat")
    live.engine.in_flight_at[going.address] = 1

    def put_back() -> None:
        live.gateway.attach("chat", "blue", going.address, is_tls=False)
        live.engine.in_flight_at[going.address] = 0

    with sleeping_with(Once(put_back)), pytest.raises(Unavailable, match=rf"{going.name} stayed"):
        scale_down(ScaleDownPlan(service="chat"))
    assert states(live)[going.address] == "up"


@pytest.mark.parametrize("is_listed", [False, True])
def test_what_drains_is_put_back_where_no_other_is_up(live: World, is_listed: bool) -> None:  # noqa: FBT001 - pytest's
    """A night that was killed leaves one that drains for ever; it must not pass for one that serves."""
    (kept, going) = live.fleet.replicas("chat")
    live.gateway.drain("chat", "blue", going.address)
    rewrite(live, lambda record: record.model_copy(update={"wanted": 1}))
    live.gateway.die("chat", "blue", kept.address)
    live.engine.unhealthy.add(kept.address)
    if not is_listed:
        live.fleet.kill(kept.name)
    reconcile(RECONCILE)
    assert "up" in states(live).values()


def test_what_the_night_drains_meanwhile_is_not_put_back_by_a_start(live: World) -> None:
    """Who starts one has adopted the others, and the night has begun to take one of those out since."""
    (lost, going) = live.fleet.replicas("chat")
    live.fleet.kill(lost.name)
    live.fleet.on_launch = Once(lambda: live.gateway.drain("chat", "blue", going.address))
    reconcile(RECONCILE)
    assert states(live)[going.address] == "draining"


def test_what_the_gateway_has_not_looked_at_yet_is_waited_for(live: World) -> None:
    """It sends nothing to a replica that it has not found well itself; that takes a second, and is no shortage."""
    live.gateway.looks_until_up = 4
    live.fleet.kill(f"{live.first.id}-0")
    (started,) = reconcile(RECONCILE)
    assert states(live)[started.replica.address] == "up"
    assert live.record.shortage is not None
    assert live.record.shortage.reason == "all that were asked for serve again"


def test_what_the_gateway_never_finds_well_is_named(live: World) -> None:
    """Nobody waits for it for ever."""
    live.gateway.looks_until_up = 1000
    live.fleet.kill(f"{live.first.id}-0")
    with pytest.raises(Unavailable, match="1 of the 2 replicas"):
        reconcile(RECONCILE)


def test_a_release_of_a_service_that_sleeps_waits_for_nothing(live: World) -> None:
    """Scaled to zero, it has nobody to lose and nothing to go back to; from then on as many as by day are asked for."""
    scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True))
    release = release_model(plan("v2"))
    assert (release.state, release.stages) == ("live", ())
    assert live.gateway.split("chat").weight_of(release.slot) == WHOLE
    assert len(live.fleet.replicas("chat")) == 2
    assert live.record.has_users


def test_what_still_answers_of_a_service_that_was_to_sleep_is_kept(live: World) -> None:
    """One that was busy at the scale-down has users, so the release goes stage by stage."""
    busy = live.fleet.replicas("chat")[0]
    live.engine.in_flight_at[busy.address] = 1
    with pytest.raises(Unavailable, match="stayed"):
        scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True, drain_timeout_seconds=0.001))
    live.engine.in_flight_at.clear()
    release = release_model(plan("v2"))
    assert [stage.share_percent for stage in release.stages] == [10, 100]


def test_a_roll_back_to_the_warm_release_asks_for_as_many_as_by_day(live: World) -> None:
    """The new one was scaled to zero; users are back on the old one, and one of it that dies is brought back."""
    old = live.first

    def in_the_warm_time(seconds: float) -> None:
        if seconds == 900:
            scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True))
            roll_back(RollBackPlan(service="chat", reason="users complain"))

    warm = plan("v2").model_copy(update={"keep_warm_seconds": 900})
    with sleeping_with(in_the_warm_time), pytest.raises(SkyferryError, match="is rolled back"):
        release_model(warm)
    assert live.record.live is not None
    assert live.record.live.id == old.id
    assert live.record.has_users
    live.fleet.kill(f"{old.id}-1")
    assert len(reconcile(RECONCILE)) == 1


# --- An engine that hangs --------------------------------------------------------------------------------------------


def test_an_engine_that_hangs_with_good_health_is_replaced(live: World) -> None:
    """It says that it is well, takes requests and completes none, twice, while another one does."""
    (hung, well) = live.fleet.replicas("chat")
    live.engine.hung = {hung.address}
    (started,) = reconcile(RECONCILE)
    assert live.fleet.stopped == [hung.name]
    assert states(live) == {started.replica.address: "up", well.address: "up"}


def test_one_that_is_only_busy_stays(live: World) -> None:
    """It gives us no completion in time and goes on generating for others."""
    (busy, _) = live.fleet.replicas("chat")
    live.engine.hung = {busy.address}

    def generate(_: float) -> None:
        live.engine.generated[busy.address] += 100

    with sleeping_with(generate):
        assert reconcile(RECONCILE) == ()
    assert not live.fleet.stopped


def test_one_that_hung_for_a_moment_stays(live: World) -> None:
    """Twice in a row is what counts."""
    live.engine.hung = {live.fleet.replicas("chat")[0].address}
    with sleeping_with(lambda _: live.engine.hung.clear()):
        assert reconcile(RECONCILE) == ()
    assert not live.fleet.stopped


def test_where_all_hang_none_is_taken_out(live: World) -> None:
    """It may be the question, or what they all need; and the last one is never ended."""
    live.engine.hung = {replica.address for replica in live.fleet.replicas("chat")}
    assert reconcile(RECONCILE) == ()
    assert set(states(live).values()) == {"up"}


# --- What is refused is refused before the guard ---------------------------------------------------------------------


def test_a_misspelt_gate_ends_no_release_that_stands_ready(live: World) -> None:
    """It is said, and the provisioned release stays what it is."""
    provision("v2")
    for name in ("sharpness", "error_percent"):
        with pytest.raises(Refused):
            promote_canary(PromotePlan(service="chat", limits={name: 0.1}))
    assert live.record.in_progress is not None
    assert len(names(live)) == 4


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (PlacementRules(cells=("no-such-cell",)), "no-such-cell is no cell"),
        (PlacementRules(max_dollars_per_hour=0.01), "0.01"),
    ],
)
def test_a_misspelt_cell_ends_no_release_that_stands_ready(live: World, rules: PlacementRules, words: str) -> None:
    """Provisioned again, with one replica missing and a placement that cannot be."""
    provision("v2")
    release = live.record.releases[-1]
    live.fleet.kill(f"{release.id}-1")
    with pytest.raises(Refused, match=words):
        provision_fleet(ProvisionPlan(service="chat", repo=REPO, revision="v2", placement=rules))
    assert live.record.in_progress == release
    assert f"{release.id}-0" in names(live)


def test_a_release_whose_mirror_is_gone_is_not_ended_by_saying_so(live: World) -> None:
    """As above, for what provision-fleet needs besides."""
    mirror_model(MirrorPlan(service="chat", repo=REPO, revision="v2"))
    provision("v2")
    release = live.record.releases[-1]
    del live.store.objects[f"{release.mirror_prefix}skyferry-manifest.json"]
    with pytest.raises(Refused, match="no complete mirror"):
        provision_fleet(ProvisionPlan(service="chat", repo=REPO, revision="v2"))
    assert live.record.in_progress == release


# --- A ledger that cannot be parsed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"releases": 7}', b"\xff\xfe"])
def test_a_ledger_that_cannot_be_parsed_is_one_that_cannot_be_read(live: World, body: bytes) -> None:
    """In the middle of a stage: the users are back on what they had, and the error names the object."""
    provision("v2")
    found = live.store.get(ledger_key("chat"))
    assert found is not None

    def spoil() -> None:
        now = live.store.get(ledger_key("chat"))
        assert now is not None
        live.store.put(ledger_key("chat"), body, replacing=now.etag)

    live.gateway.on_next_look += [spoil, lambda: None]
    with pytest.raises(Unavailable, match=r"ledger/chat.json in the service's store is no ServiceRecord \(.*mend it"):
        promote_canary(PromotePlan(service="chat", stages_percent=(50, 100), stage_seconds=0))
    assert live.gateway.split("chat") == Split(0)
