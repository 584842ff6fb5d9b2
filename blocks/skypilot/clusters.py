"""SkyPilot's clusters, through its Python SDK: launched, listed, taken down, their logs read.

SkyPilot itself is heavy and is imported by the first question, so whoever rents no machines never waits for it.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswerInTime
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import requests
import yaml
from pydantic import SecretStr

from blocks.cleaning import COLOURS
from blocks.errors import Refused, Unavailable
from blocks.skypilot.sdk import skypilot, speak_with

UNDER_WAY = {"PENDING", "RUNNING", "WAITING"}
"""What the API server says of a request that has not ended."""
ENDED = {"SUCCEEDED", "FAILED", "FAILED_SETUP", "FAILED_DRIVER", "CANCELLED"}
"""What SkyPilot says of a job that will do nothing any more."""
LINE_PREFIX = re.compile(r"^\([^()]*pid=\d+[^()]*\) ?")
"""Who printed a line of a job's log."""
NOT_THE_CELL = (
    "ApiServerConnectionError",
    "ServerTemporarilyUnavailableError",
    "RequestInterruptedError",
    "RequestCancelled",
    "ConcurrentWorkerExhaustedError",
)
"""What says nothing of the cell, and may work the next time."""
NOT_EVER = (
    "ApiServerAuthenticationError",
    "APIVersionMismatchError",
    "APINotSupportedError",
    "InvalidClusterNameError",
    "PermissionDeniedError",
    "UserRequestRejectedByPolicy",
)
REASON_AT_MOST = 300
NOTHING_TO_BE_HAD = "Failed to acquire resources"
"""How SkyPilot begins to say so, with all that was asked for, before the reason if it knows one."""

Job = Literal["none", "going on", "ended", "unknown"]
"""`going on` from the moment that it waits for its turn."""


@dataclass(frozen=True)
class Cluster:
    """What SkyPilot knows of one cluster."""

    name: str
    hash: str
    """Another cluster of the same name has another one."""
    is_up: bool
    """Its machine runs and has been set up; whether its job does is another matter."""
    host: str
    """Empty while it has none."""
    metadata: Mapping[str, str]
    """The environment that its task was launched with, without secrets."""
    launched_at: float


@dataclass(frozen=True)
class SkyPilot:
    """SkyPilot's API server: the one that its own settings name, or another. A process speaks with one only."""

    api_server: SecretStr | None = None

    def clusters(self) -> tuple[Cluster, ...]:
        """As SkyPilot last heard of them; this is quick."""
        with self.asked("list its clusters"):
            return self._listed()

    def look_up(self, names: Sequence[str]) -> tuple[Cluster, ...]:
        """Those of them that there are, once their clouds have been asked: seconds for each."""
        if not names:
            return ()
        with self.asked("look up its clusters with their clouds"):
            return self._listed(list(names), refresh=self.sdk.StatusRefreshMode.FORCE)

    def _listed(self, names: list[str] | None = None, **how: Any) -> tuple[Cluster, ...]:
        return tuple(_cluster(record) for record in self._get(self.sdk.status(names, **how)))

    def launch(
        self, name: str, task: Mapping[str, Any], *, autodown_minutes: int | None, timeout_seconds: float
    ) -> None:
        """Returns once the task's job has been handed to the new cluster. Raises what SkyPilot raises.

        Refused, with nothing asked of anybody, where SkyPilot takes it for no task.
        """
        sdk = self.sdk
        try:
            parsed = sdk.Task.from_yaml_config(dict(task))
        except Exception as error:  # noqa: BLE001 - of its schema, of its resources, of a file that is to be sent
            raise Refused(
                f"SkyPilot does not take the task of {task['name']}: {reason(error)}; mend the fleet's task"
            ) from None
        request = sdk.launch(
            parsed,
            cluster_name=name,
            idle_minutes_to_autostop=autodown_minutes,
            down=autodown_minutes is not None,
            wait_for=None if autodown_minutes is None else sdk.skylet.autostop_lib.AutostopWaitFor.JOBS,
        )
        self._wait_for(request, timeout_seconds)

    def wait_for_launch(self, name: str, timeout_seconds: float) -> None:
        """Return once nobody is launching that cluster any more, whoever asked for it and however it ends."""
        for request in self._launches(name):
            try:
                self._wait_for(request, timeout_seconds)
            except Exception as error:  # noqa: BLE001 - SkyPilot raises whatever its own parts raise
                if (lost := not_the_cell(error)) is not None:
                    raise lost from None
                # Whoever asked for it is told why; what counts here is what stands afterwards.

    def cancel_launch(self, name: str) -> None:
        """Nobody launches that cluster any more; what a launch has started stands."""
        with self.asked(f"cancel the launch of {name}"):
            for request in self._launches(name):
                self._get(self.sdk.api_cancel(request, silent=True))

    def _launches(self, name: str) -> list[str]:
        with self.asked(f"say whether {name} is being launched"):
            found = self.sdk.api_status(cluster_name=name, fields=["request_id", "name", "status"])
        return [
            request.request_id for request in found if request.name.endswith("launch") and request.status in UNDER_WAY
        ]

    def _wait_for(self, request: str, timeout_seconds: float) -> None:
        """The SDK would wait for ever."""
        waiting = ThreadPoolExecutor(1, thread_name_prefix="skypilot-request")
        try:
            waiting.submit(self._get, request).result(timeout_seconds)
        except NoAnswerInTime:
            self._get(self.sdk.api_cancel(request, silent=True))
            raise
        finally:
            waiting.shutdown(wait=False)

    def down(self, name: str) -> None:
        """SkyPilot itself asks the cloud whether it is gone before it says so; gone already is no error."""
        with self.asked(f"take {name} down"):
            try:
                self._get(self.sdk.down(name))
            except self.sdk.exceptions.ClusterDoesNotExist:
                return

    def jobs(self, clusters: Sequence[Cluster]) -> Mapping[str, Job]:
        """How the last job of each is, by the cluster's hash: the machines themselves are asked, side by side."""
        with self.asked("list jobs"):
            asked = {cluster.hash: self.sdk.queue(cluster.name, all_users=True) for cluster in clusters}
            return {key: self._last_job(request) for key, request in asked.items()}

    def _last_job(self, request: str) -> Job:
        try:
            jobs = self._get(request)
        except Exception as error:
            if not_the_cell(error) is not None:
                raise
            return "unknown"  # a machine that is gone, or for the moment out of reach
        last = max(jobs, key=lambda job: job["job_id"], default=None)
        if last is None:
            return "none"
        return "ended" if last["status"].value in ENDED else "going on"

    def log_tail(self, name: str, lines: int) -> str | None:
        """The last lines that the cluster's last job printed; None where nobody can be asked for them."""
        exceptions = self.sdk.exceptions
        log = io.StringIO()
        with self.asked(f"read the log of {name}"):
            try:
                self.sdk.tail_logs(name, None, follow=False, tail=lines, output_stream=log)
            except (exceptions.ClusterDoesNotExist, exceptions.ClusterNotUpError, exceptions.CommandError):
                return None
        printed = (LINE_PREFIX.subn("", COLOURS.sub("", line)) for line in log.getvalue().splitlines())
        return "\n".join(line for line, count in printed if count)  # the others are SkyPilot's own

    def endpoint(self, name: str, port: int) -> str:
        """`host:port`; empty while the cloud has none, or where SkyPilot cannot say."""
        exceptions = self.sdk.exceptions
        with self.asked(f"say where {name} can be reached"):
            try:
                found = self._get(self.sdk.endpoints(name, port))
            except (exceptions.ClusterNotUpError, exceptions.ClusterDoesNotExist, ValueError):
                return ""
        return re.sub(r"^[a-z]+://", "", found.get(port) or found.get(str(port)) or "")

    @property
    def sdk(self) -> Any:
        """SkyPilot's Python SDK, speaking with this server."""
        speak_with(self.api_server)
        return skypilot()

    def _get(self, request: Any) -> Any:
        return self.sdk.get(request)

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Turn what SkyPilot raises into Skyferry's errors."""
        try:
            yield
        except (Refused, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001 - SkyPilot raises whatever its own parts raise
            raise not_the_cell(error) or Unavailable(f"SkyPilot did not {what}: {reason(error)}") from None


def not_the_cell(error: Exception) -> Refused | Unavailable | None:
    """What an error means that comes from SkyPilot's API server itself; None where it tells of a cell."""
    name = type(error).__name__
    if name in NOT_EVER:
        return Refused(f"SkyPilot refuses: {reason(error)}")
    is_lost = isinstance(error, requests.RequestException) or str(error).startswith("Failed to get request")
    if name in NOT_THE_CELL or is_lost:
        return Unavailable(
            f"SkyPilot's API server gave no answer ({name}: {reason(error)}); see that it runs: `sky api info`"
        )
    return None


def reason(error: BaseException) -> str:
    """What SkyPilot said, in one line: of a failed provisioning what the cell itself said."""
    history = (structured(one) or one for one in getattr(error, "failover_history", ()))
    said = [*history, getattr(error, "detailed_reason", None), structured(error), error]
    words = " ".join(COLOURS.sub("", str(next(filter(None, said)))).split())
    for manual in (" To fix:", " Hint:", " To keep retrying", " Encoded authorization failure message"):
        words = words.partition(manual)[0]
    if words.startswith(NOTHING_TO_BE_HAD) and (why := words.partition(" Reason: ")[2]):
        words = why
    elif type(error).__name__ == "ResourcesUnavailableError" and not getattr(error, "failover_history", ()):
        words = f"{words.rstrip('.')}; it has none, or nobody answers there"  # SkyPilot says the same of both
    return words if len(words) <= REASON_AT_MOST else f"{words[:REASON_AT_MOST]} …"


def structured(error: BaseException) -> str:
    """What Google said, code by code: SkyPilot's own words for it are only that an operation has failed."""
    told = [one for one in getattr(error, "errors", None) or () if isinstance(one, dict)]
    return "; ".join(f"{one.get('code')}: {one.get('message')}" for one in told)


def _cluster(record: Mapping[str, Any]) -> Cluster:
    handle = record["handle"]
    return Cluster(
        name=record["name"],
        hash=record["cluster_hash"],
        is_up=record["status"].value == "UP",
        host=getattr(handle, "head_ip", None) or "",
        metadata=_metadata(record["last_creation_yaml"] or ""),
        launched_at=float(record["launched_at"]),
    )


@lru_cache(maxsize=1024)  # it is asked about once a second and never changes
def _metadata(creation_yaml: str) -> Mapping[str, str]:
    task = yaml.safe_load(creation_yaml) or {}
    return {name: str(value) for name, value in (task.get("envs") or {}).items()}
