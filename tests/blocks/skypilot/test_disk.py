"""What disk a rented machine is asked for."""

from dataclasses import replace

import pytest

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings, ReplicaOrder
from blocks.ports.market import Offer
from blocks.skypilot.disk import GIB, LEAST_GIB, SYSTEM_GIB, disk_size

ORDER = ReplicaOrder("chat-1a-0", "chat", "1a", "models/m/1/", EngineSettings(512, 3))
CLOUD = Offer("aws/us-east-1", "H100", 8, 80, None, use_spot=False, dollars_per_hour=1)


@pytest.mark.parametrize(
    ("asked", "filled_gib", "gib"),
    [
        (None, 0, None),
        (None, 40, None),
        (None, LEAST_GIB - SYSTEM_GIB, None),
        # 440 GiB of weights, with what sizing puts beside them.
        (None, 516, 516 + SYSTEM_GIB),
        (100, 0, 100),
        (100, 20, 100),
        (100, 200, 200 + SYSTEM_GIB),
        (1000, 200, 1000),
        ("512GB", 0, 512),
        ("2 TB", 516, 2048),
        ("600gi", 516, 600),
    ],
)
def test_a_disk_holds_what_the_replica_fills(asked: object, filled_gib: int, gib: int | None) -> None:
    """And the machine's own system; never less than the task asks for, and nothing where SkyPilot's usual one does."""
    order = replace(ORDER, disk_bytes=filled_gib * GIB)
    task = {} if asked is None else {"disk_size": asked}
    assert disk_size(task, order, CLOUD) == ({} if gib is None else {"disk_size": gib})


@pytest.mark.parametrize("cell", ["slurm/alpha", "slurm/alpha/gpu", "k8s/prod", "kubernetes/prod", "ssh/mine"])
def test_machines_that_are_there_already_are_asked_for_none(cell: str) -> None:
    """Their disks are what they are; what a task asks of them itself stands."""
    assert disk_size({}, replace(ORDER, disk_bytes=900 * GIB), replace(CLOUD, cell=cell)) == {}


@pytest.mark.parametrize("asked", ["much", -1, "1e9", ["256"]])
def test_a_disk_size_that_is_none_is_refused(asked: object) -> None:
    """With what stands there."""
    with pytest.raises(Refused, match="disk_size of"):
        disk_size({"disk_size": asked}, ORDER, CLOUD)
