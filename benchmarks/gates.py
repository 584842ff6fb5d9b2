"""How often do the gates stop a good release, and how soon a bad one? `python -m benchmarks.gates --json FILE`.

Plays made-up releases (gates_worlds.py) to production's own judge (gates_stages.py) and to its rivals
(gates_rivals.py). The table goes into docs/gates.md.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.gates_rivals import FIRST_SHARE, Judged, argo, flagger, kayenta, told
from benchmarks.gates_stages import LOOK_EVERY, batch_of, hold, hold_with_probes, outcomes
from benchmarks.gates_worlds import Borne, Harm, Traffic, World, promised_ms, promised_token_ms
from blocks.service import Service
from flows.policy.gating.alpha import alpha_of_stage
from flows.policy.gating.decide import rule
from flows.policy.gating.judge import Carried, Judge
from flows.policy.gating.limits import Limits
from flows.policy.gating.probes import PART_OF_ALPHA
from flows.policy.gating.sample_size import requests_needed

STAGES = (0.05, 0.15, 0.3, 0.5, 1.0)
DEFAULTS = {name: field.default for name, field in Service.model_fields.items() if name in Limits.model_fields}
LIMITS = Limits.model_validate(
    {**DEFAULTS, "warm_up_seconds": 0, "minimum_seconds": 60, "deadline_seconds": 3600},
)
"""The defaults of the Service block, without a warm-up, for nothing is cold here, and stages of a minute at least."""
DEADLINE_TIMES = 10
"""Or an hour, whichever is longer: so many times what the slowest stage takes if all goes well."""
ALL_OF_IT: dict[str, Any] = {
    "users": 5000,
    "always_failing_percent_of_users": 0.1,
    "is_bursty": True,
    "is_autocorrelated": True,
    "drifts": True,
}
WORLDS = (
    World("steady, nameless users, 2 a second", requests_per_second=2),
    World("bursts, 5,000 users, 20 a second", users=5000, is_bursty=True),
    World("Pareto tails, 5,000 users, 20 a second", users=5000, tail="Pareto"),
    World(
        "latency that remembers, drift, 5,000 users, 2 a second",
        requests_per_second=2,
        users=5000,
        is_autocorrelated=True,
        drifts=True,
    ),
    World(
        "2,000 sticky users of whom 0.3 % always fail, 20 a second",
        users=2000,
        activity_tail=1.1,
        always_failing_percent_of_users=0.3,
    ),
    World("300 sticky users, 2 a second", requests_per_second=2, users=300, activity_tail=1.1),
    World("thin: 5,000 users, 0.2 a second", requests_per_second=0.2, users=5000),
    World("all of it at once, log-normal tails, 20 a second", **ALL_OF_IT),
    World("all of it at once, Pareto tails, 20 a second", **ALL_OF_IT, tail="Pareto"),
    World("all of it at once, Pareto tails, 200 a second", requests_per_second=200, **ALL_OF_IT, tail="Pareto"),
)
UNEVEN: dict[str, Any] = {"users": 4000, "activity_tail": 1.1, "requests_per_second": 12}
SHARED = (
    World("4,000 sticky users with levels of their own (sigma 0.35), 12 a second", users_spread=0.35, **UNEVEN),
    World("4,000 sticky users with levels of their own (sigma 0.7), 12 a second", users_spread=0.7, **UNEVEN),
    World("4,000 sticky users, an outage of both slots for 30 s, 12 a second", has_an_outage=True, **UNEVEN),
)
"""Worlds in which what users see differs, and not by slot; they are played without probes as well."""
HARMED = (replace(WORLDS[0], name="steady, nameless users, 20 a second", requests_per_second=20), WORLDS[7])
HARMS = (
    Harm("errors +1 point", more_failing_percent=1),
    Harm("errors +2 points", more_failing_percent=2),
    Harm("first token times 1.3", slower=1.3, is_of_speed=True),
    Harm("first token times 1.5", slower=1.5, is_of_speed=True),
    Harm("first token times 2", slower=2, is_of_speed=True),
    Harm("time per token times 1.5", slower_tokens=1.5, is_of_speed=True),
    Harm("time per token times 2", slower_tokens=2, is_of_speed=True),
    Harm("5 % ten times slower", ten_times_slower_percent=5, is_of_speed=True),
    Harm("1 % of streams cut", more_failing_percent=1),
    Harm("errors on long prompts only, 20 % of them", on_long_prompts_percent=20),
    Harm("errors +10 points", more_failing_percent=10),
)
WITHIN_MARGINS = Harm(", times 8 % longer, 0.04 points more fail", 0.04, slower=1.08, slower_tokens=1.08)
LATE = tuple(replace(HARMS[number], from_share=0.5) for number in (0, 1, 3, 6))
HARMED_RELEASES = 1000
FINDS_PERCENT = 50
"""A rival that takes back no more of the releases with a harm does not find it."""
CELLS, BAD_CELL_PERCENT = 4, 8
RIVALS: dict[str, Callable[[Traffic, Harm], Judged]] = {"Flagger": flagger, "Argo": argo, "Kayenta": kayenta}


@dataclass(frozen=True)
class Ended:
    """How one release ended, as the gates ruled."""

    verdict: str
    """`promoted`, `harm` or `deadline`; one that is rolled back at 100 % was given all traffic before."""
    stage: int
    users: int
    """Whom the candidate harmed."""
    users_in_the_hour: int
    """With those whom it harms once it has passed."""
    requests: int
    gate: str = ""


def play(traffic: Traffic, harm: Harm, limits: Limits, *, may_probe: bool = True) -> Ended:
    """All stages of one release."""
    begin, borne = 0, Borne(harm)
    carried = Carried()
    for number, share in enumerate(STAGES):
        count, now = int(1.2 * requests_needed(limits, share) / share), harm.at(share)
        since = float(traffic.take(begin, 1).seconds[0])
        whole = alpha_of_stage(number, len(STAGES))
        budget = (1 - PART_OF_ALPHA) * whole if may_probe else whole
        while True:
            stream = traffic.take(begin, count)
            held = hold(stream, now, limits, share=share, budget=budget, carried=carried, since=since)
            if held.is_thin and may_probe:
                held = hold_with_probes(stream, now, limits, share=share, budget=whole, carried=carried, since=since)
            if held.verdict != "hold":
                break
            count *= 2
        seen = stream.between(0, held.at)
        borne.take(seen, seen.user_luck < share, share)
        if held.verdict == "roll back":
            verdict = "deadline" if held.gate == "deadline" else "harm"
            return Ended(verdict, number, borne.users, borne.users, borne.requests, held.gate)
        begin, carried = begin + held.at, held.carried or Carried()
    in_the_hour = borne.users_in_the_hour(traffic, float(traffic.take(begin, 1).seconds[0]))
    return Ended("promoted", len(STAGES), borne.users, in_the_hour, borne.requests)


def limits_of(world: World) -> Limits:
    slowest = requests_needed(LIMITS, FIRST_SHARE) / (FIRST_SHARE * world.requests_per_second)
    deadline = max(LIMITS.deadline_seconds, DEADLINE_TIMES * slowest)
    promised = {"first_token_p95_ms": promised_ms(world), "token_p95_ms": promised_token_ms(world)}
    return LIMITS.model_copy(update={"deadline_seconds": deadline, **promised})


def good(world: World, harm: Harm, releases: int, rivals: int, *, may_probe: bool = True) -> dict[str, Any]:
    """Candidate and stable are the same, or what is worse is within the margins."""
    limits = limits_of(world)
    ended = [play(Traffic(world, seed), harm, limits, may_probe=may_probe) for seed in range(releases)]
    return {
        "world": world.name + harm.name + ("" if may_probe else ", no probes"),
        "releases": releases,
        "false_rollback_percent": 100 * mean(one.verdict == "harm" for one in ended),
        "deadline_percent": 100 * mean(one.verdict == "deadline" for one in ended),
        "median_requests": median(one.requests for one in ended),
        "gates": _tally([one.gate for one in ended if one.verdict != "promoted"]),
        "rivals_releases": rivals,
        "rivals_false_rollback_percent": _false_alarms(world, harm, rivals),
    }


def harmful(world: World, harm: Harm, releases: int, rivals: int) -> dict[str, Any]:
    """The candidate is worse."""
    limits = limits_of(world)
    ended = [play(Traffic(world, seed), harm, limits) for seed in range(releases)]

    @lru_cache
    def knowing(alarm_percent: float, *, once: bool = False) -> float:
        rates, alarm = Traffic(world, 0).true_rates(harm), alarm_percent / 100
        rulings = (told(Traffic(world, seed), harm, rates, alarm, each_user_once=once) for seed in range(releases))
        return mean(one.users for one in rulings)

    theirs = knowing(LIMITS.false_alarm_percent)
    theirs_once = knowing(LIMITS.false_alarm_percent, once=True) if world.users else theirs
    others = _rivals(world, harm, rivals)
    alarms = _false_alarms(world, Harm(""), rivals)

    @lru_cache
    def ours_at(rate: float) -> Sequence[Ended]:
        if rate <= LIMITS.false_alarm_percent:
            return ended
        rated = limits.model_copy(update={"false_alarm_percent": rate})
        return [play(Traffic(world, seed), harm, rated) for seed in range(releases)]

    def beside_the_best(counted: str) -> dict[str, Any]:
        found = [name for name in others if others[name]["rolled_back_percent"] > FINDS_PERCENT]
        if not found:
            return {"best_rival": ""}
        best = min(found, key=lambda name: others[name][counted])
        own = mean(getattr(one, counted) for one in ours_at(alarms[best]))
        knows = knowing(max(alarms[best], LIMITS.false_alarm_percent))
        return {"best_rival": best, "its": others[best][counted], "ours": own, "told": knows, "rate": alarms[best]}

    ours = mean(one.users for one in ended)
    return {
        "world": world.name,
        "releases": releases,
        "rolled_back_percent": 100 * mean(one.verdict == "harm" for one in ended),
        "deadline_percent": 100 * mean(one.verdict == "deadline" for one in ended),
        "missed_before_100_percent": 100 * mean(one.stage >= len(STAGES) - 1 for one in ended),
        "harmed_mean": ours,
        "harmed_median": median(one.users for one in ended),
        "told_both_rates_mean": theirs,
        "told_each_user_once_mean": theirs_once,
        "times_the_limit_of_theory": ours / theirs,
        "times_the_limit_each_user_once": ours / theirs_once,
        "beside_the_best": beside_the_best("users"),
        "beside_the_best_in_the_hour": beside_the_best("users_in_the_hour"),
        "rivals_releases": rivals,
        "rivals": others,
    }


def late(world: World, harm: Harm, releases: int, rivals: int) -> dict[str, Any]:
    """The candidate is worse once it has half of the traffic."""
    ended = [play(Traffic(world, seed), harm, limits_of(world)) for seed in range(releases)]
    return {
        "world": world.name,
        "harm": harm.name,
        "releases": releases,
        "rolled_back_percent": 100 * mean(one.verdict == "harm" for one in ended),
        "missed_before_100_percent": 100 * mean(one.stage >= len(STAGES) - 1 for one in ended),
        "users": mean(one.users for one in ended),
        "users_in_the_hour": mean(one.users_in_the_hour for one in ended),
        "rivals": _rivals(world, harm, rivals),
    }


def _rivals(world: World, harm: Harm, releases: int) -> dict[str, dict[str, float]]:
    judged = {name: [judge(Traffic(world, seed), harm) for seed in range(releases)] for name, judge in RIVALS.items()}
    return {
        name: {
            "rolled_back_percent": 100 * mean(not one.passed for one in rulings),
            "users": mean(one.users for one in rulings),
            "users_in_the_hour": mean(one.users_in_the_hour for one in rulings),
        }
        for name, rulings in judged.items()
    }


@lru_cache
def _false_alarms(world: World, harm: Harm, releases: int) -> dict[str, float]:
    """Of each rival's rulings on good releases, in percent."""
    return {
        name: 100 * mean(not judge(Traffic(world, seed), harm).passed for seed in range(releases))
        for name, judge in RIVALS.items()
    }


def _tally(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def bad_cells(bad_ones: int, releases: int) -> dict[str, Any]:
    """So many cells of four fail, at 20 % of the traffic."""
    found, other, rolled_back, failed = 0, 0, 0, list[int]()
    limits, names = limits_of(HARMED[1]), {str(cell): f"cell {cell}" for cell in range(CELLS)}
    for seed in range(releases):
        judge = Judge(limits, "green", weight=0.2, alpha=alpha_of_stage(0, len(STAGES)), cells=names)
        traffic, random = Traffic(HARMED[1], seed), np.random.default_rng(seed)
        stream = traffic.take(0, 20_000)
        is_candidate = stream.user_luck < 0.2
        cell, luck = random.integers(CELLS, size=len(stream)), random.random(len(stream))
        bad = is_candidate & (cell < bad_ones) & (luck < BAD_CELL_PERCENT / 100)
        batch = batch_of(
            replace(stream, failure_luck=np.where(bad, -1.0, stream.failure_luck)),
            is_candidate,
            Harm(),
            0.0,
            np.where(is_candidate, cell, -1),
        )
        number, ruling = 0, rule(judge.evidence(), limits, 0)
        while number < len(stream) and ruling.verdict == "hold" and not ruling.bad_cells:
            judge.take_batch(batch.some(slice(number, number + LOOK_EVERY)))
            number += LOOK_EVERY
            ruling = rule(judge.evidence(), limits, float(stream.seconds[number - 1]))
        found += ruling.bad_cells == ("cell 0",)
        other += bool(ruling.bad_cells) and ruling.bad_cells != ("cell 0",)
        rolled_back += ruling.verdict == "roll back"
        failed.append(int((batch.hits["failed"] & is_candidate)[:number].sum()))
    return {
        "bad_ones": bad_ones,
        "releases": releases,
        "held_back_percent": 100 * found / releases,
        "other_cell_percent": 100 * other / releases,
        "rolled_back_percent": 100 * rolled_back / releases,
        "failed_mean": mean(failed),
    }


def cost_of_judging() -> dict[str, tuple[float, float]]:
    """Microseconds of one core for each request, from the gateway's outcomes on, at so many requests a second.

    Production takes in what a second has brought, and rules on it.
    """
    stream = Traffic(HARMED[1], 1).take(0, 40_000)
    requests = outcomes(stream, stream.user_luck < FIRST_SHARE, Harm())
    costs: dict[str, tuple[float, float]] = {}
    for at_once in (20, 200, 2000):
        judge, begun = Judge(LIMITS, "green", weight=FIRST_SHARE), time.process_time()
        for number in range(0, len(requests), at_once):
            judge.take(requests[number : number + at_once], 1.0)
        took = time.process_time() - begun
        begun = time.process_time()
        for _ in range(100):
            rule(judge.evidence(), LIMITS, 1.0)
        ruled = (time.process_time() - begun) / 100
        taking_in = 1e6 * took / len(requests)
        costs[str(at_once)] = taking_in, taking_in + 1e6 * ruled / at_once
    return costs


ABOUT = """## Measured

By `{command}`, with seeds: the same numbers each time.
Users, requests and harms are made up (`benchmarks/gates_worlds.py`). The limits are the block's defaults but for the
two times, to the first token and per token, which are promised within twice the world's true p95, and for the warm-up,
of which there is none; the stages are 5, 15, 30, 50 and 100 %, a minute at least.
Flagger, Argo Rollouts and Kayenta are written from their documentation (`benchmarks/gates_rivals.py`) and see the same
users. They look at failures and first tokens, as their documentation does, and so at no time per token.

**Candidate and stable alike**: how many releases were rolled back all the same, in percent. One that could not be
passed by its deadline (an hour, or ten times what its first stage takes) stands apart. Where too few users come, probes
are sent as in production. In the last two rows the candidate is worse by a little less than the margins excuse, in all
that is measured at once. Rivals: of {rivals} releases, fewer at 200 a second.

| world | releases | harm | deadline | candidate's requests, median | {names} |
|---|---:|---:|---:|---:|{columns}
"""
ABOUT_HARM = """
**A bad candidate**: how many users it harmed until it was rolled back, on average: those whom a request failed, or
with harms of speed all whom it answered. Each counts once, and a nameless request is a user. "Told" is Wald's test that
is told both true rates, at 5 % of the traffic, with 1 % of false alarms for itself alone; of times it is told one line,
and how the hour of the day and what latency remembers shift them. It takes all requests of a user for as many draws,
which nobody can know to be right; "each user once" is the same test without that, as the gates are. Beside each rival
stands how often it rolled back. "Missed" is how often the candidate was given all traffic.

| world | harm | releases | rolled back | missed | users harmed, mean (median) | told | ours / told \
| told, each user once | ours / it | {names} |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|{columns}
"""
ABOUT_THE_BEST = """
**Beside the best rival, at its own rate of false alarms**: the rival that lets the fewest users be harmed, of those
that take back more than half of the releases with this harm; how many good releases of this world it takes back; and
how many users the gates let be harmed, and the test that is told, where both may take back as many, or {alarm:g} %
where that is more. First until its ruling, as if a bad release did no more harm once it is let through; then with all
whom such a release, of a rival's or of ours, harms until an hour after it began, when somebody may notice.

| world | harm | best rival | its false alarms | users harmed until its ruling | by ours | ours / its | told / its \
| best rival by the hour | its false alarms | users harmed | by ours | ours / its |
|---|---|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|
"""
ABOUT_LATE = """
**A candidate that is worse once it has half of the traffic**, and like stable before. A rival's users are all whom it
harms until an hour after it began; Kayenta looks at 5 % for that hour, and sees nothing.

| world | harm from 50 % on | releases | rolled back | missed | users harmed, mean | within the hour | {names} |
|---|---|---:|---:|---:|---:|---:|{columns}
"""
ABOUT_CELLS = """
**Cells**: so many of four fail 8 % more, at 20 % of the traffic. How often the first one alone was held back, other
ones were, and the release was rolled back, in percent; and how many requests failed until then.

| cells that fail | releases | the first held back | others | rolled back | failed, mean |
|---:|---:|---:|---:|---:|---:|
"""
ABOUT_THE_COST = """
**Cost**, on a shared machine: of one core for each request, where a second has brought so many, which production takes
in at once; and with the ruling that it makes of them.

| requests a second | taking in | with a ruling |
|---:|---:|---:|
"""


def table(report: dict[str, Any]) -> str:
    """What stands in docs/gates.md."""
    names = {"names": " | ".join(RIVALS), "columns": "---:|" * len(RIVALS)}
    text = ABOUT.format(**names, command=report["command"], rivals=report["harmful"][0]["rivals_releases"])
    for row in report["good"]:
        cells = [row["world"], f"{row['releases']:,}", f"{row['false_rollback_percent']:.2f}"]
        cells += [f"{row['deadline_percent']:.2f}", f"{row['median_requests']:,.0f}"]
        cells += [f"{percent:.1f}" for percent in row["rivals_false_rollback_percent"].values()]
        text += f"| {' | '.join(cells)} |\n"
    text += ABOUT_HARM.format(**names)
    for row in report["harmful"]:
        cells = [row["world"], row["harm"], f"{row['releases']:,}", f"{row['rolled_back_percent']:.1f} %"]
        cells += [f"{row['missed_before_100_percent']:.1f} %"]
        cells += [f"{row['harmed_mean']:.1f} ({row['harmed_median']:.0f})"]
        cells += [f"{row['told_both_rates_mean']:.1f}", f"{row['times_the_limit_of_theory']:.2f}"]
        cells += [f"{row['told_each_user_once_mean']:.1f}", f"{row['times_the_limit_each_user_once']:.2f}"]
        rivals = row["rivals"].values()
        cells += [f"{rival['users']:,.0f} ({rival['rolled_back_percent']:.0f} %)" for rival in rivals]
        text += f"| {' | '.join(cells)} |\n"
    text += ABOUT_THE_BEST.format(alarm=LIMITS.false_alarm_percent)
    text += "".join(_beside_the_best(row) for row in report["harmful"])
    text += ABOUT_LATE.format(**names)
    for row in report["late"]:
        cells = [row["world"], row["harm"], f"{row['releases']:,}", f"{row['rolled_back_percent']:.1f} %"]
        cells += [f"{row['missed_before_100_percent']:.1f} %", f"{row['users']:.1f}", f"{row['users_in_the_hour']:.1f}"]
        rivals = row["rivals"].values()
        cells += [f"{rival['users_in_the_hour']:,.0f} ({rival['rolled_back_percent']:.0f} %)" for rival in rivals]
        text += f"| {' | '.join(cells)} |\n"
    text += ABOUT_CELLS
    for row in report["cells"]:
        cells = [str(row["bad_ones"]), f"{row['releases']:,}", f"{row['held_back_percent']:.1f}"]
        cells += [f"{row[name]:.1f}" for name in ("other_cell_percent", "rolled_back_percent", "failed_mean")]
        text += f"| {' | '.join(cells)} |\n"
    text += ABOUT_THE_COST
    for at_once, (taking_in, with_ruling) in report["cost"].items():
        text += f"| {at_once} | {taking_in:.0f} µs | {with_ruling:.0f} µs |\n"
    return text


def _beside_the_best(row: dict[str, Any]) -> str:
    cells = [row["world"], row["harm"]]
    for there, with_told in ((row["beside_the_best"], True), (row["beside_the_best_in_the_hour"], False)):
        if not there["best_rival"]:
            return f"| {' | '.join([*cells, 'none finds it', *10 * ['']])} |\n"
        its, own = there["its"], there["ours"]
        cells += [there["best_rival"], f"{there['rate']:.0f} %", f"{its:,.1f}", f"{own:,.1f}", f"{own / its:.2f}"]
        cells += [f"{there['told'] / its:.2f}"] if with_told else []
    return f"| {' | '.join(cells)} |\n"


def write_into(page: Path, text: str) -> None:
    begin, end = "<!-- benchmark -->", "<!-- /benchmark -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--releases", type=int, default=10_000, help="alike, in each world")
    parser.add_argument("--processes", type=int, default=None, help="at once; as many as there are cores if not given")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs" / "gates.md", help="the page")
    options = parser.parse_args()
    harmed, rivals = min(options.releases, HARMED_RELEASES), max(1, min(options.releases, HARMED_RELEASES) // 10)
    command = f"python -m benchmarks.gates --json FILE --releases {options.releases}"
    report: dict[str, Any] = {"command": command, "stages": STAGES, "limits": LIMITS.model_dump(), "good": []}
    report["cost"] = cost_of_judging()
    report["worlds"], report["harmful"] = [asdict(world) for world in (*WORLDS, *SHARED)], []

    with ProcessPoolExecutor(options.processes) as pool:

        def row(work: Callable[..., dict[str, Any]], *parameters: object) -> Future[dict[str, Any]]:
            return pool.submit(_timed, partial(work, *parameters))

        few = {world: max(1, rivals // 10) if world.requests_per_second > 100 else rivals for world in WORLDS}
        rows = [row(good, world, Harm(""), options.releases, few[world]) for world in WORLDS]
        rows += [
            row(partial(good, may_probe=may_probe), world, Harm(""), options.releases, rivals)
            for world, may_probe in product(SHARED, (True, False))
        ]
        rows += [row(good, world, WITHIN_MARGINS, harmed, rivals) for world in HARMED]
        # What differs in name only is played once.
        harms = {replace(harm, name=""): None for harm in HARMS}
        played = {(world, harm): row(harmful, world, harm, harmed, rivals) for world, harm in product(HARMED, harms)}
        late_ones = [row(late, world, harm, harmed, rivals) for world, harm in product(HARMED, LATE)]
        cells = [row(bad_cells, bad_ones, harmed) for bad_ones in (1, CELLS)]
        for one in rows:
            report["good"].append(one.result())
            options.json.write_text(json.dumps(report, indent=1))
        for world, harm in product(HARMED, HARMS):
            report["harmful"].append({"harm": harm.name, **played[world, replace(harm, name="")].result()})
            options.json.write_text(json.dumps(report, indent=1))
        report["late"] = [one.result() for one in late_ones]
        report["cells"] = [one.result() for one in cells]
    options.json.write_text(json.dumps(report, indent=1))
    write_into(options.docs, table(report))


def _timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    begun = time.monotonic()
    result = work()
    print(f"{time.monotonic() - begun:6.0f} s", json.dumps(result), flush=True)  # noqa: T201 - a command's progress
    return result


if __name__ == "__main__":
    os.nice(10)
    main()
