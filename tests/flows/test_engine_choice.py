"""Which engine a release is made of, on fakes: chosen, recorded, refused, and what a block's edit changes: nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.engines.block import Engine
from blocks.errors import Refused
from blocks.files import ROOT
from blocks.haproxy.gateway import HAProxyGateway
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.fleet import LocalFleet
from blocks.ports.fleet import EngineBuild, EngineChoice
from blocks.service import Service
from blocks.stores.kept import ENGINES, read_kept
from blocks.stores.s3 import S3Store
from flows.boards.release import release_report
from flows.plans import ProvisionPlan, ScaleUpPlan
from flows.policy.placement.plan import Placement
from flows.policy.releases.differences import differences
from flows.policy.releases.ledger import ServiceRecord, ledger_key, release_id
from flows.provision import provision_fleet
from flows.release import release_model
from flows.scale_up import scale_up
from tests.fakes.store import FakeStore
from tests.flows.conftest import REPO, World
from tests.flows.test_release import plan


def test_a_release_records_its_engine_and_keeps_what_it_names(live: World) -> None:
    """In the ledger, in the orders of its replicas, and in the store by its hash."""
    build = live.first.engine.build
    assert build is not None
    assert {order.engine.build for order in live.fleet.orders} == {build}
    assert read_kept(live.store, build.task, what="it") == live.fleet.task.encode()


def test_further_stores_keep_it_too(live: World) -> None:
    """One of them may be the one that the fleet reads; where one cannot, the release goes on."""
    second, third = FakeStore(), FakeStore()
    third.refuses_writes = True
    live.service.further_stores = [second, third]  # pyright: ignore[reportAttributeAccessIssue] - fakes
    live.fleet.task = "run: another engine"
    build = release_model(plan("v1")).engine.build
    assert build is not None
    assert read_kept(second, build.task, what="it") == b"run: another engine"


def test_another_engine_is_another_release(live: World) -> None:
    """Of the same model, with all its stages; the flags of one release go over those of the service's engine."""
    live.service.engine = Engine.model_construct(
        name="fake", version="1", flags={"a": 1, "b": 2}, environment={"A": "1"}, task=""
    )
    second = release_model(plan("v1", engine_version="2", engine_flags={"b": 3}, engine_environment={"B": "2"}))
    assert [stage.share_percent for stage in second.stages] == [10, 100]
    report = release_report(second, live.service.endpoint, live.record.release(live.first.id))
    assert "not set → 3" in report.markdown
    assert second.engine.build is not None
    assert second.engine.build == replace(
        second.engine.build,
        version="2",
        flags=(("a", "1"), ("b", "3")),
        environment=(("A", "1"), ("B", "2")),
    )
    assert release_model(plan("v1", engine_version="2", engine_flags={"b": 3}, engine_environment={"B": "2"})) == second


def test_an_edited_block_changes_nothing_that_runs(live: World) -> None:
    """A lost replica is started as the one that passed its gates, and only a release brings the new engine."""
    first = live.first
    live.fleet.task = "run: another engine"
    live.service.engine = Engine.model_construct(name="fake", version="9", flags={}, environment={}, task="")
    live.fleet.kill(live.fleet.replicas("chat")[0].name)
    scale_up(ScaleUpPlan(service="chat"))
    assert live.fleet.orders[-1].engine == first.engine


def test_an_edited_block_is_a_release_once_somebody_releases(live: World) -> None:
    """Of the same model: it rises by all its stages, and the ledger says what is new."""
    first = live.first
    live.fleet.task = "run: another engine"
    second = release_model(plan("v1"))
    assert [stage.share_percent for stage in second.stages] == [10, 100]
    (task,) = differences(first, second)
    assert task.startswith("task: ")


def test_a_block_that_is_edited_while_a_release_goes_on_is_the_next_ones(live: World) -> None:
    """The run that has opened it ends with the engine that it began with."""
    live.fleet.on_resolve = lambda: setattr(live.fleet, "task", "run: another engine")
    second = release_model(plan("v2"))
    assert second.engine.build == live.first.engine.build


def unrecorded(live: World) -> str:
    """The live release as version 0.1 would have left it; its id."""
    found = live.store.get(ledger_key("chat"))
    assert found is not None
    record = json.loads(found.body)
    (release,) = record["releases"]
    del release["engine"]["build"], release["engine"]["kind"]
    settings = replace(live.first.engine, build=None)
    release["id"] = release_id("chat", release["repo"], release["commit"], settings)
    body = json.dumps(record).encode()
    ServiceRecord.model_validate_json(body)
    live.store.put(ledger_key("chat"), body, replacing=found.etag)
    for key, replica in [*live.fleet.running.data.items()]:
        live.fleet.running.pop(key)
        name = replica.name.replace(replica.release, release["id"])
        live.fleet.running[key[0], name] = replace(replica, name=name, release=release["id"])
    return release["id"]


def test_a_release_of_0_1_stays_live_when_it_is_released_again(live: World, caplog: pytest.LogCaptureFixture) -> None:
    """No surprise: nothing is started, and what has to be started later is said to be the block's."""
    old = unrecorded(live)
    assert release_model(plan("v1")).id == old
    assert live.record.in_progress is None
    live.fleet.kill(live.fleet.replicas("chat")[0].name)
    scale_up(ScaleUpPlan(service="chat"))
    assert live.fleet.orders[-1].engine.build is None
    assert "from a time when releases recorded no engine" in caplog.text


def test_whoever_chooses_an_engine_leaves_0_1_behind(live: World) -> None:
    """With a block, or for one release: it is recorded from then on."""
    old = unrecorded(live)
    second = release_model(plan("v1", engine_flags={"a": 1}))
    assert second.id != old
    assert isinstance(second.engine.build, EngineBuild)


def test_a_fleet_that_cannot_have_the_engine_is_heard_before_anything_is_spent(live: World) -> None:
    """No release is opened, nothing is mirrored, and a plan alone is refused as well."""

    def refuse() -> None:
        raise Refused("engine flag host of fake is Skyferry's to set")

    live.fleet.on_resolve = refuse
    keys = {*live.store.objects}
    with pytest.raises(Refused, match="Skyferry's to set"):
        release_model(plan("v2", engine_flags={"host": "x"}))
    with pytest.raises(Refused, match="Skyferry's to set"):
        provision_fleet(ProvisionPlan(service="chat", repo=REPO, revision="v2", plan_only=True))
    assert {key for key in {*live.store.objects} - keys if key.startswith(("models/", ENGINES))} == set()
    assert live.record.in_progress is None


def test_a_plan_alone_keeps_nothing(live: World) -> None:
    """Of the engine either."""
    live.fleet.task = "run: another engine"
    before = {*live.store.objects}
    assert isinstance(
        provision_fleet(ProvisionPlan(service="chat", repo=REPO, revision="v2", plan_only=True)), Placement
    )
    assert {*live.store.objects} == before


def test_a_service_keeps_its_engine(tmp_path: Path) -> None:
    """Saved as a block and loaded again; one that 0.1 saved, without any, is loaded as well."""
    service = Service(
        name="kept",
        endpoint="http://127.0.0.1:1/v1",
        hub=HuggingFaceHub(),
        store=S3Store(bucket="one"),
        fleet=LocalFleet(directory=tmp_path, store=S3Store(bucket="one")),
        gateway=HAProxyGateway(admin_socket=tmp_path / "admin.sock"),
        engine=Engine(name="vllm", version="0.33.0", flags={"seed": 1, "enforce-eager": True}, environment={"A": "1"}),
    )
    service.save("kept-engine", overwrite=True)
    loaded = Service.load("kept-engine")
    assert isinstance(loaded, Service)
    assert loaded.choose_engine() == service.choose_engine()
    assert loaded.choose_engine() is not None
    saved = json.loads((ROOT / "tests/saved/service-0.1.json").read_text())
    old = Service.model_validate(saved)
    old.save("of-0-1", overwrite=True)
    again = Service.load("of-0-1")
    assert isinstance(again, Service)
    assert again.choose_engine() is None
    assert again.fleet.resolve_engine(EngineChoice()).build.name == "vllm"
