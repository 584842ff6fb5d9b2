"""What several folders of tests share, and what begins first, so that all workers end at about the same time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from blocks.local.processes import ended_with_this_process
from tests.live.slurm_lab import running_slurm_lab  # noqa: F401 - the fixture slurm_lab: one for each worker

LONGEST_FIRST = (
    "live/test_release.py",
    "live/test_cells.py",
    "contracts/test_fleet.py",
    "live",
    "stack",
    "flows",
    "transfer",
)
"""One real stack takes a third of all tests, and begun last, it would be waited for by everyone. Of the live ones, the
first worker gets the releases and the fleet's contract, and the second all else."""


@pytest.fixture(scope="session", autouse=True)
def servers_end_with_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever is broken off, and however: no fixture of a killed worker gets to end what it has started."""
    with ended_with_this_process(tmp_path_factory.getbasetemp()):
        yield


class FlowsTogether(LoadFileScheduling):
    """A file's tests are one worker's, and those of all flows as well: their Prefect server takes seconds to start."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "tests/flows" if file.startswith("tests/flows/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FlowsTogether:
    return FlowsTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Otherwise the order stays: the tests of the stack follow its life."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    path = item.path.relative_to(Path(__file__).parent)
    places = (turn for turn, first in enumerate(LONGEST_FIRST) if path.is_relative_to(first))
    return next(places, len(LONGEST_FIRST))
