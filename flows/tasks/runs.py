"""Ask Prefect about flow runs."""

from functools import lru_cache
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from flows.policy.ledger import Release


def own_run_id() -> str:
    """The run that acts: of a chain of flows the outermost, so that each link acts for the same release."""
    return _root_of(flow_run.id)


@lru_cache(maxsize=128)
def _root_of(_run_id: str) -> str:
    """Asked once a run: each answer takes several calls to Prefect."""
    return flow_run.root_flow_run_id


def ended_run_of(release: Release | None) -> str | None:
    """The run that acts for the release, if that has ended."""
    return release.run_id if release is not None and has_ended(release.run_id) else None


def has_ended(run_id: str) -> bool:
    """Also where Prefect does not know the run, as after its database was lost."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run_id)).state
        except ObjectNotFound:
            return True
    return state is not None and state.is_final()
