"""What this machine says of its disk."""

import shutil
from pathlib import Path

import pytest

from blocks.local.fleet import LocalFleet
from blocks.stores.s3 import S3Store


def test_the_offer_says_what_a_replica_may_fill(tmp_path: Path) -> None:
    """What is free on its disk, and what its weights have already; a directory need not be there yet."""
    fleet = LocalFleet(directory=tmp_path, store=S3Store(bucket="tests"))
    free = shutil.disk_usage(tmp_path).free / (1 << 30)
    (offer,) = fleet.model_copy(update={"directory": tmp_path / "not" / "yet"}).offers([], [])
    assert offer.disk_gib == pytest.approx(free, abs=5)
    (tmp_path / "weights").mkdir()
    with (tmp_path / "weights" / "a.gguf").open("wb") as file:
        file.truncate(64 << 30)  # of holes, which take nothing
    (offer,) = fleet.offers([], [])
    assert offer.disk_gib == pytest.approx(free + 64, abs=5)
