"""This machine as a market of one offer."""

import re
import stat
from importlib import metadata
from pathlib import Path

import pytest

from blocks.errors import Refused
from blocks.local.fleet import LEAST_MEMORY_BYTES, LocalFleet, memory_stock
from blocks.ports.fleet import EngineBuild, EngineChoice, EngineSettings, ReplicaOrder
from blocks.ports.market import ON_PROCESSORS
from blocks.stores.s3 import S3Store
from tests.fakes.fleet import OFFER


@pytest.fixture(name="fleet")
def fleet_that_runs_nothing(tmp_path: Path) -> LocalFleet:
    return LocalFleet(directory=tmp_path, store=S3Store(bucket="tests"), cell="desk", dollars_per_hour=0.25)


@pytest.mark.parametrize("cells", [[], ["desk"], ["aws", "desk"]])
@pytest.mark.parametrize("accelerators", [[], ["CPU"], ["L4", "cpu"]])
def test_this_machine_is_the_one_offer(fleet: LocalFleet, cells: list[str], accelerators: list[str]) -> None:
    """Its processors, at the price that its owner named."""
    (offer,) = fleet.offers(cells, accelerators)
    assert (offer.cell, offer.accelerator, offer.accelerators) == ("desk", ON_PROCESSORS, 0)
    assert offer.dollars_per_hour == 0.25
    assert (offer.host_gib or 0) > 0


def test_other_places_and_accelerators_are_refused(fleet: LocalFleet) -> None:
    """The refusal names what was asked and what to ask instead."""
    with pytest.raises(Refused, match="aws/us-east-1 is not this machine; name desk"):
        fleet.offers(["aws/us-east-1"], [])
    with pytest.raises(Refused, match="L4 is not to be had in desk"):
        fleet.offers([], ["L4"])


def test_it_is_free_while_memory_suffices(fleet: LocalFleet) -> None:
    """Stock is the memory to spare, and the load what others use of it."""
    (offer,) = fleet.offers([], [])
    free = memory_stock(offer, LEAST_MEMORY_BYTES, 4 * LEAST_MEMORY_BYTES, at=5)
    assert (free.answer, free.at, free.load) == ("free", 5, 0.75)
    assert memory_stock(offer, LEAST_MEMORY_BYTES - 1, 4 * LEAST_MEMORY_BYTES, at=5).answer == "none"
    (now, again) = fleet.stock([offer, offer])
    assert now == again
    assert now.at > 0
    assert 0 <= (now.load or 0) <= 1


def test_the_engine_is_the_one_that_is_installed_here(fleet: LocalFleet) -> None:
    """Without a choice llama.cpp; its version is recorded, and no other one is to be had."""
    build = fleet.resolve_engine(EngineChoice()).build
    assert build == EngineBuild("llama.cpp", metadata.version("xllamacpp"))
    flags = EngineChoice(flags={"ubatch-size": 64, "batch-size": 128})
    assert fleet.resolve_engine(flags).build.flags == (("batch-size", "128"), ("ubatch-size", "64"))
    for choice, said in (
        (EngineChoice(version="1.0"), rf"llama\.cpp 1\.0 is asked for, and {re.escape(build.version)} is installed"),
        (EngineChoice("vllm"), "vllm cannot be had on this machine: .* has no vllm; install it there"),
        (EngineChoice("sglang"), r"sglang has no command for this machine; a local fleet runs llama\.cpp, vllm"),
        (EngineChoice(task="run: x"), "leave the Engine block's task empty"),
        (EngineChoice(flags={"parallel": 8}), "set parallel_requests"),
    ):
        with pytest.raises(Refused, match=said):
            fleet.resolve_engine(choice)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            EngineBuild("llama.cpp", "1.0"),
            r"passed its gates with llama\.cpp 1\.0, and .* install xllamacpp==1\.0 ",
        ),
        (EngineBuild("gone", "1.0"), "there is no engine 'gone'"),
        (EngineBuild("vllm", "0.33.0", task="a" * 64), "starts vllm by a task; release the model anew"),
    ],
)
def test_a_recorded_engine_that_is_here_no_more_is_refused(fleet: LocalFleet, build: EngineBuild, said: str) -> None:
    """Before weights are fetched: no other engine is started in its place."""
    order = ReplicaOrder("chat-1a-0", "chat", "1a", "models/maker/m/1/", EngineSettings(512, 1, build=build))
    with pytest.raises(Refused, match=said):
        fleet.launch(order, OFFER)
    assert fleet.replicas("chat") == ()


def test_a_release_has_one_key_that_others_cannot_read(fleet: LocalFleet, tmp_path: Path) -> None:
    """The same for each process that asks, another for each release, from a file of this user's alone."""
    key = fleet.key_of("1a")
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert fleet.model_copy().key_of("1a") == key
    assert fleet.key_of("1b") != key
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("left", ["", "null", "[]", "{}", '{"name": "chat-1a-0"', '{"made_by": "a later version"}'])
def test_a_record_that_nobody_can_read_is_no_replica(fleet: LocalFleet, tmp_path: Path, left: str) -> None:
    """As after a loss of power: the others are listed all the same, and it can be stopped."""
    (tmp_path / "replicas").mkdir()
    record = tmp_path / "replicas" / "chat-1a-0.json"
    record.write_text(left)
    assert fleet.replicas("chat") == fleet.every_replica() == ()
    fleet.stop("chat-1a-0")
    assert not record.exists()
