"""The main job: releases under live traffic, two of them bad, and what users noticed of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, computed_field

from blocks.errors import Unavailable
from blocks.local.processes import Daemon
from deployments.local.hub import DEEPER, REPO, add_deeper
from deployments.local.settings import SERVICE
from deployments.local.stack import Say, Stack
from flows.policy.releases.ledger import Release, State

LONG_TOKENS = 240
"""About what a longer prompt has: more than v3's window takes, and much less than the others'."""
WINDOW_TOKENS = 2048
FAR_TOO_SMALL_WINDOW_TOKENS = 256
STAGES_PERCENT = (5, 15, 30, 50, 100)
HALF_AS_FAST = {"stages_percent": (50, 100), "limits": {"slower_than_stable": 1.3, "first_token_margin_ms": 20}}
"""How v4 is released. By such limits it takes hundreds of requests to pass a good release, and twenty to see harm, once
the first hundred have told what is slow: at half of three requests a second that is about a minute."""
NEW_ENGINE = {"engine_flags": {"cache-ram": 64}}
"""What v2 and those after it change of the engine: half the memory for prompts that begin alike."""
STEP_SECONDS = 600


class Noticed(BaseModel, frozen=True):
    """What users noticed, as the load generator counted it."""

    sent: int = 0
    lost: int = 0
    refused: int = 0
    streams_cut: int = 0
    users_who_saw_a_failure: int = 0

    def since(self, before: "Noticed") -> "Noticed":
        mine, theirs = self.model_dump(), before.model_dump()
        return Noticed(**{name: mine[name] - theirs[name] for name in mine})


class Step(BaseModel, frozen=True):
    """One flow run, and what users noticed while it ran."""

    name: str
    exit_code: int
    seconds: float
    noticed: Noticed


class Report(BaseModel, frozen=True):
    """All that the demo has to show for itself."""

    steps: tuple[Step, ...]
    releases: tuple[Release, ...]
    replicas_left: tuple[str, ...]
    users: dict[str, Any]
    """The load generator's own report."""
    claims: dict[str, bool]

    @computed_field
    @property
    def came_true(self) -> bool:
        return all(self.claims.values())


@dataclass(frozen=True)
class Users:
    """The load generator in its own process, and the report that it writes every second."""

    daemon: Daemon
    report: Path

    @classmethod
    def of(cls, stack: Stack) -> "Users":
        return cls(Daemon("traffic", stack.home.run), stack.home.path / "traffic.json")

    def noticed(self) -> Noticed:
        """As of a moment after this call; nothing before the first users came."""
        asked = time.time()
        while self.daemon.find() is not None and (not self.report.exists() or self.report.stat().st_mtime < asked):
            time.sleep(0.1)
        return Noticed.model_validate_json(self.report.read_bytes()) if self.report.exists() else Noticed()

    @contextmanager
    def calling(self, url: str, rate: float) -> Iterator[None]:
        self.report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "deployments.local.traffic", "--url", url, "--report", str(self.report)]
        options = ["--rate", str(rate), "--long-share", "0.25", "--long-tokens", str(LONG_TOKENS)]
        self.daemon.start([*command, *options], env={})
        try:
            yield
        finally:
            self.daemon.stop(grace_seconds=40)  # it waits for the last answers


@dataclass(frozen=True)
class Demo:
    stack: Stack
    rate: float
    say: Say

    def play(self) -> Report:
        """Release v1, v2 with a new engine, a v3 that cannot be and a v4 that is too slow, then sleep for the night."""
        add_deeper(self.stack.home.hub)
        users = Users.of(self.stack)
        steps = [self._step("release v1", "release-model", _release("v1"), users)]
        with users.calling(self.stack.settings.endpoint, self.rate):
            small = _release("v2", FAR_TOO_SMALL_WINDOW_TOKENS)
            steps += [
                self._step("release v2", "release-model", _release("v2") | NEW_ENGINE, users),
                self._step("release v3", "release-model", small | NEW_ENGINE, users),
                self._step("release v4", "release-model", _release(DEEPER) | NEW_ENGINE | HALF_AS_FAST, users),
                self._step("scale down for the night", "scale-down", {"service": SERVICE}, users),
            ]
        return self._report(tuple(steps), json.loads(users.report.read_text()))

    def _step(self, name: str, flow: str, parameters: dict[str, Any], users: Users) -> Step:
        """Run a deployment as a person would, and tell its stages as the ledger notes them."""
        self.say(f"[bold]{name}[/bold]")
        begun, before, told = time.monotonic(), users.noticed(), len(self._stages())
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "prefect", "deployment", "run", f"{flow}/{SERVICE}"),
                *("--params", json.dumps(parameters), "--watch"),
            ],
            env={**os.environ, **self.stack.client_env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as run:
            while run.poll() is None:
                if time.monotonic() - begun > STEP_SECONDS:
                    run.kill()
                    raise Unavailable(f"{name} did not end within {STEP_SECONDS} s; its run is in the Prefect UI")
                told = self._tell_stages(told)
                time.sleep(1)
        self._tell_stages(told)
        return Step(
            name=name,
            exit_code=run.returncode,
            seconds=round(time.monotonic() - begun, 1),
            noticed=users.noticed().since(before),
        )

    def _tell_stages(self, told: int) -> int:
        stages = self._stages()
        for share, verdict, reason in stages[told:]:
            self.say(f"  {share:>3} %  {verdict}: {reason}")
        return len(stages)

    def _stages(self) -> list[tuple[int, str, str]]:
        return [
            (s.share_percent, s.verdict, s.reason) for release in self.stack.record.releases for s in release.stages
        ]

    def _report(self, steps: tuple[Step, ...], users: dict[str, Any]) -> Report:
        left = tuple(replica.name for replica in self.stack.fleet.every_replica())
        releases = self.stack.record.releases
        return Report(
            steps=steps, releases=releases, replicas_left=left, users=users, claims=claims(steps, releases, left, users)
        )


def claims(
    steps: Sequence[Step], releases: Sequence[Release], replicas_left: Sequence[str], users: dict[str, Any]
) -> dict[str, bool]:
    """What the demo claims, and whether it came true."""
    first, second, third, fourth, night = steps
    states: list[State] = [release.state for release in releases]
    unharmed = Noticed().model_dump(exclude={"sent"})
    # A release that never began is not in the ledger.
    passed = [(stage.share_percent, stage.verdict) for release in releases[1:2] for stage in release.stages]
    shares = [stage.share_percent for release in releases[2:3] for stage in release.stages]
    return {
        "v1 was released": first.exit_code == 0,
        "v2 took over through all stages": second.exit_code == 0
        and passed == [(share, "promote") for share in STAGES_PERCENT],
        "v2's engine has its new flag": [
            dict(release.engine.build.flags) for release in releases[1:2] if release.engine.build is not None
        ]
        == [{"cache-ram": "64"}],
        "v1 was retired, v2 is live, v3 and v4 were rolled back": states
        == ["retired", "live", "rolled back", "rolled back"],
        "v3's run says that it failed": third.exit_code != 0,
        "no user noticed v2's promotion": second.noticed.model_dump(exclude={"sent"}) == unharmed,
        # Users are put into a stage by hash, so that a stage of 5 % has about 5 % of them, not exactly.
        "v3 touched at most about a stage's share of the users": bool(shares)
        and third.noticed.users_who_saw_a_failure <= 2 * shares[-1] / 100 * users["users"],
        "v4's run says that it failed": fourth.exit_code != 0,
        "v4, half as fast, was taken back for its time to first token": any(
            words in release.closing_reason
            for release in releases[3:4]
            for words in ("time to first token is", "time to first token was")
        ),
        "nobody saw v4 fail: it is no worse than slow": fourth.noticed.model_dump(exclude={"sent"}) == unharmed,
        "no request was lost and no stream cut, ever": (users["lost"], users["streams_cut"]) == (0, 0),
        "the night's replica is left, and it is v2's": night.exit_code == 0
        and len(replicas_left) == 1
        and [name.rsplit("-", 1)[0] for name in replicas_left] == [release.id for release in releases[1:2]],
        "nobody noticed the scale-down": night.noticed.model_dump(exclude={"sent"}) == unharmed,
    }


def _release(revision: str, context_tokens: int = WINDOW_TOKENS) -> dict[str, Any]:
    return {
        "service": SERVICE,
        "repo": REPO,
        "revision": revision,
        "context_tokens": context_tokens,
        "stages_percent": STAGES_PERCENT,
        "stage_seconds": 5,
        "stage_deadline_seconds": 300,
        "keep_warm_seconds": 0,  # the next release needs the slot at once
        "ready_timeout_seconds": 120,
    }
