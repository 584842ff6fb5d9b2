"""Who acts? Two installations may share clouds, clusters and machines, and each ends only what is its own."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from blocks.errors import Refused
from blocks.ports.gateway import Server
from flows.policy.releases.ledger import ENDED, ServiceRecord

INSTALLATION_KEY = "installation.json"
"""Where an installation's id lies, in the store that has its ledgers: who shares that store is one installation."""


class Installation(BaseModel):
    """What marks as ours all that we start."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(default="", pattern=r"^([0-9a-f]{16})?$")
    """Drawn once; it becomes a part of names and paths. Empty where there is none yet."""
    made_at: datetime | None = None
    services: Mapping[str, str] = {}
    """For each service that has acted, which Prefect's it is: the id of its block document there."""


def founded(installation: Installation, new: Installation) -> Installation:
    """Give it the new one's id where it has none."""
    return installation if installation.id else installation.model_copy(update={"id": new.id, "made_at": new.made_at})


def remembered(records: Iterable[ServiceRecord]) -> Installation:
    """What the ledgers know of the installation that writes them, though its own record be lost; empty if nothing.

    What ended counts as well, for replicas of it may still run, but after what stands. It is as old as the oldest
    release that bears its mark, so that older ones may bear none.
    """
    marked = [release for record in records for release in record.releases if release.installation]
    if not marked:
        return Installation()
    own = max(marked, key=lambda release: (release.state not in ENDED, release.opened_at)).installation
    return Installation(id=own, made_at=min(release.opened_at for release in marked if release.installation == own))


def check_same(record: ServiceRecord, installation: Installation, *, url: str) -> None:
    """Refused where a release that has not ended bears another mark: nobody would see its replicas, or stop them."""
    for release in record.releases:
        if release.state not in ENDED and release.installation not in {"", installation.id}:
            raise Refused(
                f"{url} says that this installation is {installation.id}, and the ledger of {release.service!r} that "
                f"{release.id}, which is {release.state}, was opened by {release.installation}: its replicas would "
                f"run on unseen; put {release.installation} back as `id` in that file, or, where this store is a copy "
                f"of another installation's, take its ledgers away"
            )


def claimed(installation: Installation, service: str, document: str | None, *, url: str) -> Installation:
    """Let that block document be the service; Refused where another one is, as another Prefect's would be.

    `url` is the address of this installation's record. A service from Python is no document, and claims nothing.
    """
    if document is None:
        return installation
    if (holder := installation.services.get(service, document)) != document:
        raise Refused(
            f"{url} says that the service {service!r} is the block document {holder} of another Prefect, and not "
            f"{document}: two that act on one ledger end each other's releases; give this one a store or a name of "
            f"its own, or, where that Prefect is gone, take {service!r} out of `services` in that file"
        )
    return installation.model_copy(update={"services": {**installation.services, service: document}})


def inherited(record: ServiceRecord, installation: Installation) -> frozenset[str]:
    """The releases whose replicas may bear no mark: those that stand since before there was one.

    One that has ended is none of them: what is left of it may as well be another installation's.
    """
    made_at = installation.made_at
    standing = (release for release in record.releases if release.state not in ENDED)
    return frozenset(release.id for release in standing if made_at is None or release.opened_at < made_at)


def check_nobody_else_serves(record: ServiceRecord, service: str, servers: Sequence[Server]) -> None:
    """Refused where the gateway's users are answered already, though this installation never released to them."""
    answering = sorted(server.address for server in servers if server.state == "up")
    if answering and not record.releases:
        raise Refused(
            f"the gateway sends the users of {service!r} to {', '.join(answering)}, and this installation has never "
            f"released to that service, so another one has: give this one a gateway, or a service name, of its own; "
            f"or, where the other one is gone, stop these replicas first"
        )
