"""Where replicas go: chosen by price and stock, one cell after the other, never twice and never over a cap."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from blocks.errors import Refused, SkyferryError, Unexplained
from blocks.ports.fleet import Replica, ReplicaOrder
from blocks.ports.market import Offer, Stock
from flows.mirror import mirror_model
from flows.policy.placement.attempts import ATTEMPTS_KEY, Attempts
from flows.policy.placement.plan import Placement
from flows.policy.releases.installation import INSTALLATION_KEY
from flows.policy.releases.ledger import Release
from flows.provision import provision_fleet
from flows.reap import reap_orphans
from flows.release import release_model
from flows.scale_down import scale_down
from flows.scale_up import scale_up
from flows.steps.place import NotAll
from tests.fakes.fleet import OFFER
from tests.flows.conftest import REPO, World

ALPHA = Offer("slurm/alpha", "L4", 1, 24, 64, use_spot=False, dollars_per_hour=0.7)
BETA = Offer("slurm/beta", "L4", 1, 24, 64, use_spot=False, dollars_per_hour=0.9)


@pytest.fixture(autouse=True)
def two_cells(world: World) -> None:
    world.fleet.listed = [ALPHA, BETA]


def plan(*, plan_only: bool = False, ready_timeout_seconds: float = 60, **rules: Any) -> dict[str, Any]:
    return dict(
        service="chat",
        repo=REPO,
        revision="v1",
        plan_only=plan_only,
        ready_timeout_seconds=ready_timeout_seconds,
        **rules,
    )


def provision(*, ready_timeout_seconds: float = 60, **rules: Any) -> None:
    mirror_model(service="chat", repo=REPO, revision="v1")
    provision_fleet(**plan(ready_timeout_seconds=ready_timeout_seconds, **rules))


def cells(world: World) -> list[str]:
    return sorted(replica.cell for replica in world.fleet.replicas("chat"))


def attempts(world: World) -> Attempts:
    found = world.store.get(ATTEMPTS_KEY)
    return Attempts() if found is None else Attempts.model_validate_json(found.body)


def test_the_cheaper_cell_is_taken(world: World) -> None:
    """With stock in both, price decides; what it costs is known of each replica."""
    provision()
    assert cells(world) == ["slurm/alpha"] * 2
    assert {replica.dollars_per_hour for replica in world.fleet.replicas("chat")} == {0.7}


def test_each_replica_is_ordered_with_its_disk(world: World) -> None:
    """What sizing has worked out comes to the fleet, and a cell that has less of it is passed over."""
    world.fleet.listed = [replace(ALPHA, disk_gib=0.5), replace(BETA, disk_gib=64)]
    provision()
    assert cells(world) == ["slurm/beta"] * 2
    assert all(order.disk_bytes > 1 << 29 for order in world.fleet.orders)


def test_a_cell_that_says_no_is_followed_by_the_next(world: World) -> None:
    """The replica goes elsewhere at once, and what the cell said is kept for the next time."""
    world.fleet.says_no["slurm/alpha"] = "0 of 4 L4 are free"
    provision()
    assert cells(world) == ["slurm/beta"] * 2
    kept = Counter((one.cell, one.said_no) for one in attempts(world).attempts)
    assert kept == {("slurm/alpha", "0 of 4 L4 are free"): 2, ("slurm/beta", None): 2}


def test_a_machine_on_which_nothing_gets_ready_is_replaced_elsewhere(world: World) -> None:
    """It is given back, and the replica goes to another cell, once."""
    world.engine.never_ready_in = {"slurm/alpha"}
    provision(ready_timeout_seconds=0.01)
    assert cells(world) == ["slurm/beta"] * 2
    assert {one.cell for one in attempts(world).attempts if one.said_no} == {"slurm/alpha"}


def test_what_gets_ready_on_no_machine_is_tried_on_two(world: World) -> None:
    """It is the model's own fault then, and a third machine is not paid for."""
    world.fleet.listed = [ALPHA, BETA, replace(BETA, cell="slurm/gamma")]
    world.engine.never_ready_in = {"slurm/alpha", "slurm/beta", "slurm/gamma"}
    with pytest.raises(Refused, match=r"(?s)no third one is rented.*last words"):
        provision(ready_timeout_seconds=0.01)
    assert {one.cell for one in attempts(world).attempts} == {"slurm/alpha", "slurm/beta"}
    assert not world.fleet.replicas("chat")
    assert world.record.in_progress is None


def test_a_fleet_that_spells_its_addresses_in_another_way(world: World) -> None:
    """Each replica was taken for none of its slot as soon as it was attached, and detached."""
    world.fleet.host = "[2001:DB8:0:0::7]"
    assert release("v1").state == "live"
    assert {(server.address, server.state) for server in world.gateway.servers("chat")} == {
        ("[2001:db8::7]:9000", "up"),
        ("[2001:db8::7]:9001", "up"),
    }
    assert len(scale_down(service="chat")) == 1
    assert len(world.gateway.servers("chat")) == 1


def test_where_every_cell_says_no_nothing_is_left(world: World) -> None:
    """The refusal has each cell's own words; no release is open."""
    world.fleet.says_no.update({"slurm/alpha": "its controller is down", "slurm/beta": "no free node"})
    with pytest.raises(Refused, match=r"(?s)its controller is down.*no free node"):
        provision()
    assert not world.fleet.replicas("chat")
    assert world.record.in_progress is None


def test_a_cap_below_the_cheapest_offer_is_refused_before_anything_starts(world: World) -> None:
    """The message has the cap and what it would take; nothing is launched or written to the ledger."""
    with pytest.raises(Refused, match=r"1\.00.*1\.40|1\.40.*1\.00"):
        provision_fleet(**plan(max_dollars_per_hour=1.0))
    assert not world.fleet.orders
    assert not world.record.releases


def test_the_service_pays_for_both_releases(world: World) -> None:
    """The live release's replicas count to the service's cap while a candidate starts beside them."""
    release("v1")
    world.service.max_dollars_per_hour = 2.0
    with pytest.raises(Refused, match="service's cap"):
        release("v2")
    assert {replica.release for replica in world.fleet.replicas("chat")} == {world.record.releases[0].id}


def release(revision: str) -> Release:
    return release_model(
        service="chat", repo=REPO, revision=revision, stages_percent=(100,), stage_seconds=0, keep_warm_seconds=0
    )


def test_only_a_plan_starts_nothing(world: World) -> None:
    """It needs neither a mirror nor a cell that would have us, and writes nothing."""
    no = Stock("refused", 0, 1, "no credentials")
    world.fleet.stocked.update({ALPHA: no, BETA: no})
    placement = provision_fleet(**plan(plan_only=True))
    assert isinstance(placement, Placement)
    assert placement.placed == (ALPHA, ALPHA)
    assert not world.fleet.orders
    assert [*world.store.objects] == [INSTALLATION_KEY]


def test_a_cell_that_would_not_have_us_is_found_out_before_anything_starts(world: World) -> None:
    """Without credentials anywhere the run is refused with the cells' words, and no release is open."""
    no = Stock("refused", 0, 1, "no credentials; run `sky check aws`")
    world.fleet.stocked.update({ALPHA: no, BETA: no})
    with pytest.raises(Refused, match="sky check aws"):
        provision_fleet(**plan())
    assert not world.record.releases


def test_spread_uses_two_cells(world: World) -> None:
    """A fleet that is to stand in two failure domains does, though one of them costs more."""
    provision(spread=True)
    assert cells(world) == ["slurm/alpha", "slurm/beta"]


def test_replicas_that_stand_are_adopted_where_they_stand(world: World) -> None:
    """As after a run that was killed between launch and answer: the retry finds them and starts no others."""
    provision()
    held = world.record.in_progress
    assert held is not None
    started = world.fleet.replicas("chat")
    world.fleet.listed = [replace(ALPHA, dollars_per_hour=9.0), BETA]
    provision()  # the same plan again: its run before has ended
    assert world.fleet.replicas("chat") == started


@pytest.mark.parametrize("stages", [(10, 100), (100,)])
def test_a_replica_lost_in_a_stage_is_started_anew(live: World, stages: tuple[int, ...]) -> None:
    """Before more users come, or the old release goes, the fleet is whole again; its cell is trusted less then."""

    def lose_one() -> None:
        candidate = live.record.in_progress
        assert candidate is not None
        live.fleet.kill(f"{candidate.id}-0")

    live.gateway.on_next_look.append(lose_one)
    released = release_model(
        service="chat", repo=REPO, revision="v2", stages_percent=stages, stage_seconds=0, keep_warm_seconds=0
    )
    assert released.state == "live"
    assert [replica.name for replica in live.fleet.replicas("chat")] == [f"{released.id}-0", f"{released.id}-1"]
    assert [one.said_no for one in attempts(live).attempts if one.said_no] == [f"{released.id}-0 was lost there"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_orphans_are_shown_and_stopped_unless_it_is_a_dry_run(live: World, *, dry_run: bool) -> None:
    """A replica of a release that the ledger does not know is found; the live ones stay."""
    standing = live.fleet.replicas("chat")
    engine = live.record.releases[0].engine
    orphan = live.fleet.launch(ReplicaOrder("chat-lost-0", "chat", "chat-lost", "models/m/1/", engine), OFFER)
    found = reap_orphans(service="chat", dry_run=dry_run)
    assert found.replicas == (orphan,)
    left: set[Replica] = set(live.fleet.replicas("chat"))
    assert left == ({*standing, orphan} if dry_run else {*standing})


GAMMA = replace(BETA, cell="slurm/gamma")
DELTA = replace(BETA, cell="slurm/delta", dollars_per_hour=0.95)


def test_what_is_ours_ends_the_search_and_teaches_nothing(world: World) -> None:
    """One cell is asked, whose words they are not; no other cell is asked, and nothing is kept against any."""
    world.fleet.launch_failures.extend(
        [Refused("the credentials have expired"), Refused("the credentials have expired")]
    )
    with pytest.raises(Refused, match="the credentials have expired"):
        provision()
    assert len(world.fleet.orders) == 2  # both replicas were in progress when the first was told
    assert attempts(world) == Attempts()
    assert not world.fleet.replicas("chat")


def unexplained(*cells_and_words: tuple[str, str]) -> list[SkyferryError]:
    return [Unexplained(cell, words) for cell, words in cells_and_words]


def test_three_cells_with_the_same_unknown_words_are_one_cause(world: World) -> None:
    """The fourth is not asked, and none of the three is blamed for it."""
    world.fleet.listed = [ALPHA, BETA, GAMMA, DELTA]
    world.service.replicas = 1
    world.fleet.launch_failures.extend(
        unexplained(*((f"slurm/{name}", f"no such account on {name}, try 4711{n}") for n, name in enumerate("abc")))
    )
    with pytest.raises(Refused, match="3 cells in a row say the same"):
        provision()
    assert len(world.fleet.orders) == 3
    assert attempts(world) == Attempts()


def test_unknown_words_that_differ_are_the_cells(world: World) -> None:
    """Each is one more no, which is kept; so is what was said before a cell that has a machine."""
    world.fleet.listed = [ALPHA, BETA, GAMMA, DELTA]
    world.service.replicas = 1
    world.fleet.launch_failures.extend(
        unexplained(("slurm/alpha", "odd"), ("slurm/beta", "odder"), ("slurm/gamma", "odd"))
    )
    provision()
    assert Counter(one.said_no for one in attempts(world).attempts) == {"odd": 2, "odder": 1, None: 1}


def test_an_engine_that_ends_by_itself_is_not_tried_again_there(world: World) -> None:
    """Of each replica there is one start, its last words are in the error, and the cell's memory has them."""
    world.fleet.listed = [ALPHA]
    world.fleet.ends_in["slurm/alpha"] = "No space left on device"
    with pytest.raises(Refused, match="No space left on device"):
        provision()
    assert len(world.fleet.orders) == 2
    assert ["No space left" in (one.said_no or "") for one in attempts(world).attempts] == [True, True]


def test_an_engine_that_ends_by_itself_on_two_offers_is_the_models_fault(world: World) -> None:
    """One cause is one answer: a third offer is not paid for."""
    world.fleet.listed = [ALPHA, BETA, GAMMA]
    world.fleet.ends_in.update(dict.fromkeys(["slurm/alpha", "slurm/beta", "slurm/gamma"], "unknown flag --fast"))
    with pytest.raises(Refused, match=r"(?s)the engine ended by itself, so it is the model.*unknown flag --fast"):
        provision()
    assert {one.cell for one in attempts(world).attempts} == {"slurm/alpha", "slurm/beta"}
    assert len(world.fleet.orders) <= 4


def test_a_machine_without_an_address_is_no_fault_of_the_model(world: World) -> None:
    """Its cell is told off for it by name, however many do so, and another one is taken."""
    world.fleet.listed = [ALPHA, BETA, GAMMA]
    world.fleet.without_address.update({"slurm/alpha", "slurm/beta"})
    provision(ready_timeout_seconds=0.01)
    assert cells(world) == ["slurm/gamma"] * 2
    noes = {one.cell: one.said_no or "" for one in attempts(world).attempts if one.said_no}
    assert {*noes} == {"slurm/alpha", "slurm/beta"}
    assert all("never given an address" in words and "load balancer" in words for words in noes.values())


def test_what_can_be_had_of_a_live_release_serves(live: World) -> None:
    """With room for one of two the one is in its slot, and the error says why the other is not."""
    release = live.record.live
    assert release is not None
    live.fleet.running.clear()
    for server in live.gateway.servers("chat"):
        live.gateway.die("chat", server.slot, server.address)
    live.fleet.listed = [ALPHA]
    live.service.max_dollars_per_hour = 1.0
    with pytest.raises(NotAll, match=r"1 of 2 replicas are ready and serve; of the others: .*cap") as raised:
        scale_up(service="chat")
    (standing,) = live.fleet.replicas("chat")
    assert [one.replica for one in raised.value.started] == [standing]
    servers = live.gateway.servers("chat")
    assert [server.address for server in servers if server.slot == release.slot] == [standing.address]
    live.service.max_dollars_per_hour = None
    scale_up(service="chat")
    assert len(live.fleet.replicas("chat")) == 2


def test_a_candidate_is_whole_or_is_not(world: World) -> None:
    """Nobody judges half of it: with room for one of two nothing is left."""
    world.fleet.listed = [ALPHA]
    world.service.max_dollars_per_hour = 1.0
    with pytest.raises(Refused, match="cap"):
        provision()
    assert not world.fleet.replicas("chat")
