"""A SkyPilot on paper, with a fleet on it: what several installations that share one API server see of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from blocks.skypilot.clusters import Cluster, Job, SkyPilot
from blocks.skypilot.fleet import SkyPilotFleet, Watch


@dataclass(frozen=True, eq=False)
class PaperSkyPilot(SkyPilot):
    """Every launch gives a cluster, at once, unless it is told to fail."""

    standing: dict[str, Cluster] = field(default_factory=dict)
    fails_with: list[Exception] = field(default_factory=list)
    """Each is raised once, by the next launches in turn."""
    job_of: dict[str, Job] = field(default_factory=dict)
    """By the cluster's name; `going on` where nothing is said."""
    _numbers: Any = field(default_factory=count)

    def clusters(self) -> tuple[Cluster, ...]:
        return tuple(self.standing.values())

    def look_up(self, names: Sequence[str]) -> tuple[Cluster, ...]:
        return tuple(self.standing[name] for name in names if name in self.standing)

    def launch(
        self,
        name: str,
        task: Mapping[str, Any],
        *,
        autodown_minutes: int | None,  # noqa: ARG002 - nothing is idle on paper
        timeout_seconds: float,  # noqa: ARG002 - and nothing lasts
    ) -> None:
        if self.fails_with:
            raise self.fails_with.pop(0)
        self.add(name, task["envs"])

    def add(self, name: str, told: Mapping[str, str]) -> None:
        self.standing[name] = Cluster(
            name, f"{name}#{next(self._numbers)}", is_up=True, host="node", metadata=told, launched_at=0
        )

    def wait_for_launch(self, name: str, timeout_seconds: float) -> None:
        pass

    def cancel_launch(self, name: str) -> None:
        pass

    def down(self, name: str) -> None:
        self.standing.pop(name, None)

    def jobs(self, clusters: Sequence[Cluster]) -> Mapping[str, Job]:
        return {cluster.hash: self.job_of.get(cluster.name, "going on") for cluster in clusters}

    def log_tail(self, name: str, lines: int) -> str | None:  # noqa: ARG002 - one line is all there is
        return f"the last words of {name}" if name in self.standing else None

    def endpoint(self, name: str, port: int) -> str:
        return f"{name}:{port}"


class PaperFleet(SkyPilotFleet):
    """A fleet on such a SkyPilot."""

    _block_type_name = "Paper Fleet"
    _block_type_slug = "paper-fleet"
    _paper: PaperSkyPilot | None = None

    @property
    def _skypilot(self) -> PaperSkyPilot:
        assert self._paper is not None
        return self._paper

    @property
    def _watch(self) -> Watch:
        return Watch(self._skypilot)

    def _answers(self, cluster: Cluster) -> bool:
        return self._skypilot.jobs([cluster])[cluster.hash] == "going on"
