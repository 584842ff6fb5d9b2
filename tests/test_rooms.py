"""One file and one line: what lies in a room is found by its list, and what has no line there is noticed."""

import inspect
import pkgutil
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import yaml
from prefect import Flow
from prefect.blocks.core import Block

import blocks
import blocks.engines
import blocks.stock
import blocks.stores
import flows
from blocks.engines.known import KnownEngine
from blocks.engines.registry import OWN
from blocks.ports.market import Offer
from blocks.stock.sources import SOURCES
from blocks.stores.kinds import AnyStore

ROOT = Path(__file__).parents[1]
OFFER = Offer("aws/us-east-1", "L4", 1, 24, 16, use_spot=True, dollars_per_hour=1, instance="g6.xlarge")


def modules_in(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found.ispkg:
            yield import_module(found.name)


def made_in(module: ModuleType, kind: type) -> set[type]:
    return {
        thing
        for _, thing in inspect.getmembers(module, inspect.isclass)
        if thing.__module__ == module.__name__ and issubclass(thing, kind)
    }


def test_every_store_stands_in_the_list() -> None:
    """A block with a file in blocks/stores can be a service's store and a fleet's."""
    there = {block for module in modules_in(blocks.stores) for block in made_in(module, Block)}
    assert there == {*get_args(AnyStore)}


def test_every_source_of_stock_stands_in_the_list() -> None:
    """A file in blocks/stock that knows of a cloud is asked; of two for one cloud, the first that knows the offer."""
    told_of = {
        thing.cloud
        for module in modules_in(blocks.stock)
        for thing in made_in(module, object)
        if isinstance(getattr(thing, "cloud", None), str) and hasattr(thing, "ask")
    }
    assert told_of <= {source.cloud for source in SOURCES}
    assert [source.cloud for source in SOURCES if source.knows(OFFER)]


def test_every_engine_stands_in_the_list() -> None:
    """A file in blocks/engines that says what an engine is can be chosen by its name."""
    there = {
        thing.name
        for module in modules_in(blocks.engines)
        for _, thing in inspect.getmembers(module, lambda thing: isinstance(thing, KnownEngine))
    }
    assert there == {known.name for known in OWN}


def flows_by_file() -> dict[str, list[str]]:
    return {
        module.__name__: [
            name
            for name, thing in inspect.getmembers(module)
            if isinstance(thing, Flow) and thing.fn.__module__ == module.__name__
        ]
        for module in modules_in(flows)
    }


@pytest.mark.parametrize(("module", "names"), flows_by_file().items())
def test_a_flow_is_a_file_and_has_a_deployment(module: str, names: list[str]) -> None:
    """What lies in flows/ itself is one flow, which prefect.yaml deploys."""
    deployed = {one["entrypoint"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert len(names) == 1
    assert f"{module}.{names[0]}" in deployed


@pytest.mark.parametrize("package", ["blocks", "flows"])
def test_every_room_says_what_it_is_and_stands_in_the_contract(package: str) -> None:
    """In a sentence or two at its door; and import-linter knows where it stands."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {
        name
        for one in contracts
        if one.get("containers") == [package]
        for layer in one["layers"]
        for name in layer.split(" | ")
    }
    rooms = {found.name for found in pkgutil.iter_modules([str(ROOT / package)]) if found.ispkg}
    assert rooms <= layers
    for room in rooms:
        assert import_module(f"{package}.{room}").__doc__, room
