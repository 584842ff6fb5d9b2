"""Two installations, one fleet: each acts on what is its own, and one that claims the other's is refused."""

from dataclasses import replace
from uuid import uuid4

import pytest

from blocks.errors import Refused
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Split
from flows.plans import ProvisionPlan, ReapPlan, ReconcilePlan, ReleasePlan, RollBackPlan, ScaleDownPlan
from flows.policy.releases.installation import INSTALLATION_KEY, Installation
from flows.policy.releases.ledger import ledger_key
from flows.provision import provision_fleet
from flows.reap import reap_orphans
from flows.reconcile import reconcile
from flows.release import release_model
from flows.roll_back import roll_back
from flows.scale_down import scale_down
from flows.steps.service import open_service
from tests.flows.conftest import INSTALLATION, REPO, World, new_world
from tests.flows.test_steps import provision


def release(revision: str = "v1") -> str:
    plan = ReleasePlan(service="chat", repo=REPO, revision=revision, stages_percent=(100,), stage_seconds=0)
    return release_model(plan.model_copy(update={"keep_warm_seconds": 0})).id


def beside(world: World) -> World:
    """Another installation, with a store, a ledger and a gateway of its own, on the same clouds."""
    other = new_world()
    other.store.objects.clear()
    other.service.fleet = other.fleet = replace(world.fleet, installation="")  # pyright: ignore[reportAttributeAccessIssue] - a fake
    other.engine.fleet = world.fleet
    return other


def id_of(world: World) -> str:
    found = world.store.get(INSTALLATION_KEY)
    assert found is not None
    return Installation.model_validate_json(found.body).id


def test_one_that_is_scaled_to_zero_and_reaped_takes_nothing_from_the_other(live: World) -> None:
    """Same service, same model, and so the same release id: production keeps its replicas and its traffic."""
    production = live.fleet.replicas("chat")
    staging = beside(live)
    with staging.in_use():
        assert release() == live.first.id
        own = replace(staging.fleet, installation=id_of(staging))
        assert len(own.replicas("chat")) == 2
        assert not {*own.replicas("chat")} & {*production}
        scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True))
        assert own.replicas("chat") == ()
        assert reap_orphans(ReapPlan(service="chat", dry_run=False, grace_seconds=0)).replicas == ()
    assert live.fleet.replicas("chat") == production


def test_orphans_of_one_are_no_orphans_of_the_other(live: World) -> None:
    """Production's replicas are unknown to staging's ledger, and none of its business."""
    staging = beside(live)
    with staging.in_use():
        assert reap_orphans(ReapPlan(service="chat", dry_run=False, grace_seconds=0)).replicas == ()
    assert len(live.fleet.replicas("chat")) == 2


def without_marks(world: World) -> tuple[Replica, ...]:
    """As an older version has left it: neither the store nor a replica has an installation's id."""
    running = {("", name): replica for (_, name), replica in world.fleet.running.data.items()}
    world.fleet.running.data = running
    world.service.fleet = world.fleet = replace(world.fleet, installation="")  # pyright: ignore[reportAttributeAccessIssue] - a fake
    del world.store.objects[INSTALLATION_KEY]
    unmarked = [release.model_copy(update={"installation": ""}) for release in world.record.releases]
    old = world.record.model_copy(update={"releases": tuple(unmarked)})
    world.store.objects[ledger_key("chat")] = old.model_dump_json().encode()
    return tuple(running.values())


@pytest.mark.parametrize("body", [None, b"{}", b'{"id": ""}'])
def test_a_lost_id_is_the_one_that_the_ledger_remembers(live: World, body: bytes | None) -> None:
    """Else the live replicas are nobody's: reconcile starts a second set, and nobody ends the first."""
    del live.store.objects[INSTALLATION_KEY]
    if body is not None:
        live.store.objects[INSTALLATION_KEY] = body
    running = {**live.fleet.running.data}
    assert reconcile(ReconcilePlan(service="chat")) == ()
    assert live.fleet.running.data == running
    assert id_of(live) == INSTALLATION.id
    assert open_service("chat").fleet.replicas("chat") == live.fleet.replicas("chat")


def test_a_lost_id_is_known_to_the_ledger_of_any_service(live: World) -> None:
    """Whichever service acts first, also one that has never released."""
    del live.store.objects[INSTALLATION_KEY]
    live.service.name = "embed"
    open_service("embed")
    assert id_of(live) == INSTALLATION.id


def test_another_id_than_the_ledger_s_is_refused(live: World) -> None:
    """The words name both, and nothing is started, stopped or written."""
    other = INSTALLATION.model_copy(update={"id": "f" * 16})
    live.store.objects[INSTALLATION_KEY] = other.model_dump_json().encode()
    objects, running = {**live.store.objects}, {**live.fleet.running.data}
    for only_looks in (False, True):
        with pytest.raises(
            Refused, match=rf"is {other.id}, and the ledger of 'chat' .* {INSTALLATION.id} back as `id`"
        ):
            open_service("chat", only_looks=only_looks)
    assert (live.store.objects, live.fleet.running.data) == (objects, running)


def test_users_are_brought_back_though_a_lost_id_cannot_be_written(live: World) -> None:
    """The ledger knows whose the replicas are; who says that the traffic went back comes later."""
    provision("v2")
    live.gateway.set_split("chat", Split(5000))
    del live.store.objects[INSTALLATION_KEY]
    live.store.refuses_writes = True
    with pytest.raises(Refused):
        roll_back(RollBackPlan(service="chat", reason="users complain"))
    assert live.gateway.split("chat") == Split(0)


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"id": "mine"}', b"\xff"])
def test_users_are_brought_back_though_nobody_can_read_whose_the_store_is(live: World, body: bytes) -> None:
    """The ledger remembers whose the replicas are: the candidate's are stopped, and the live ones are not."""
    first = live.first
    provision("v2")
    live.gateway.set_split("chat", Split(5000))
    live.store.objects[INSTALLATION_KEY] = body
    roll_back(RollBackPlan(service="chat", reason="users complain"))
    assert live.gateway.split("chat") == Split(0)
    assert {replica.release for replica in live.fleet.replicas("chat")} == {first.id}
    assert live.store.objects[INSTALLATION_KEY] == body


def test_what_ran_before_there_were_ids_is_still_its_own(live: World) -> None:
    """It gets an id at its first run, and its replicas are adopted, not started anew, and can be stopped."""
    old = without_marks(live)
    launched = len(live.fleet.orders)
    release()
    assert id_of(live)
    assert {*open_service("chat").fleet.replicas("chat")} == {*old}
    assert len(live.fleet.orders) == launched + 2
    scale_down(ScaleDownPlan(service="chat", replicas=1))
    assert len(live.fleet.running) == 1


def test_another_installation_does_not_inherit(live: World) -> None:
    """Who never had such a release before there were ids has no unmarked replicas."""
    old = without_marks(live)
    staging = beside(live)
    with staging.in_use():
        release()
        scale_down(ScaleDownPlan(service="chat", replicas=0, to_zero=True))
    assert {*live.fleet.running.data.values()} == {*old}


def test_the_id_is_made_once(world: World) -> None:
    """Whoever comes later reads it, and it is another one for each store."""
    first = id_of(world)
    open_service("chat")
    assert id_of(world) == first
    del world.store.objects[INSTALLATION_KEY]
    open_service("chat", only_looks=True)
    assert world.store.get(INSTALLATION_KEY) is None
    open_service("chat")
    assert id_of(world) not in {"", first}


def test_a_service_of_another_prefect_on_the_same_store_is_refused(world: World) -> None:
    """Its block document is another one; the words say what to do where the first one is gone."""
    own, other = uuid4(), uuid4()
    world.service._block_document_id = own
    open_service("chat")
    open_service("chat")
    world.service._block_document_id = other
    with pytest.raises(Refused, match=rf"{own}.*a store or a name of its own.*take 'chat' out of `services`"):
        open_service("chat")
    with pytest.raises(Refused, match="another Prefect"):
        open_service("chat", only_looks=True)


def test_a_gateway_that_serves_for_another_installation_is_refused(live: World) -> None:
    """Before anything is mirrored or started: its name or the gateway has to be another one."""
    staging = beside(live)
    staging.service.gateway = live.service.gateway
    with staging.in_use(), pytest.raises(Refused, match="another one has: give this one a gateway, or a service name"):
        provision_fleet(ProvisionPlan(service="chat", repo=REPO, revision="v1"))
    assert len(live.fleet.running) == 2
