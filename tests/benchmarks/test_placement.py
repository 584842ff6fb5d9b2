"""The markets have the shapes that they claim, and the benchmark finds what it prints."""

import json
from itertools import combinations
from pathlib import Path
from statistics import correlation, fmean

import pytest
from typer.testing import CliRunner

from benchmarks.markets import SHARES_IN_STOCK, World, worlds
from benchmarks.placement import app, measure

DAYS = 45
WORLDS = {world.name: world for world in worlds(seed=7, days=DAYS)}


def in_stock(world: World, cell: str) -> list[float]:
    lot = next(lot for lot in world.lots if lot.offer.cell == cell)
    return [float(free > 0) for free in lot.in_stock]


def test_zones_have_stock_as_often_as_measured_and_in_bursts() -> None:
    """The mean over all zones is the study's, and being out of stock is short in the median and long in the mean."""
    world = WORLDS["spot, one GPU"]
    measured = fmean(share for _, shares in SHARES_IN_STOCK for share in shares)
    assert fmean(fmean(in_stock(world, lot.offer.cell)) for lot in world.lots) == pytest.approx(measured, abs=0.1)
    lengths: list[int] = []
    for lot in world.lots:
        lengths += [len(run) for run in "".join("0" if free else "1" for free in lot.in_stock).split("0") if run]
    assert fmean(lengths) > 1.7 * sorted(lengths)[len(lengths) // 2]


def test_zones_of_a_region_run_out_together() -> None:
    """Within a region they correlate as in the study, and between regions hardly."""
    world = WORLDS["spot, one GPU"]
    zones = [(lot.offer.domain, in_stock(world, lot.offer.cell)) for lot in world.lots]
    alike = [correlation(a, b) for (one, a), (two, b) in combinations(zones, 2) if one == two]
    apart = [correlation(a, b) for (one, a), (two, b) in combinations(zones, 2) if one != two]
    assert fmean(alike) == pytest.approx(0.43, abs=0.12)
    assert abs(fmean(apart)) < 0.05


def test_the_same_seed_gives_the_same_world() -> None:
    """And another seed another one."""
    again, other = (worlds(seed, DAYS)[0].lots[0].in_stock for seed in (7, 8))
    assert again == WORLDS["spot, one GPU"].lots[0].in_stock
    assert other != again


def test_ours_is_cheaper_and_sooner_and_the_oracle_is_best() -> None:
    """Where much is out of stock: ours is ahead of both rivals in all figures; the oracle never fails."""
    games = {game.policy: game for game in measure(WORLDS["spot, eight GPUs"], market=7, releases=4)}
    ours, oracle = games["ours"], games["oracle"]
    for rival in (games["SkyPilot's order"], games["cheapest first"]):
        assert oracle.dollars_per_replica_hour < ours.dollars_per_replica_hour < rival.dollars_per_replica_hour
        assert oracle.failed_tries == 0 < ours.failed_tries < rival.failed_tries
        assert ours.minutes_to_fleet < rival.minutes_to_fleet


def test_it_writes_its_figures_for_machines(tmp_path: Path) -> None:
    """Seven worlds and their sum, five policies each, who was ahead, and the time for ten thousand offers."""
    file = tmp_path / "figures.json"
    options = ["--releases", "1", "--markets", "1", "--seed", "3", "--json", str(file)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "10,000 offers ranked in" in result.output
    report = json.loads(file.read_text())
    assert len(report["rows"]) == 8 * 5
    assert [one["ahead"] + one["level"] + one["behind"] for one in report["standings"]] == [7] * 4
    assert report["rank_10000_offers_cpu_seconds"] > 0
