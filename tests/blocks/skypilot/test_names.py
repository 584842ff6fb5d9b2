"""No cloud cuts the name of a replica's cluster, and no two are alike."""

import re
from collections.abc import Iterator
from itertools import islice, product
from random import Random

import pytest

from blocks.ports.fleet import EngineSettings
from blocks.skypilot.names import LONGEST, cluster_name
from blocks.skypilot.sdk import skypilot
from flows.policy.releases.ledger import release_id

SERVICES = (
    "a",
    "chat",
    "support-assistant",
    "customer-support-assistant",
    "x--9",
    "a-very-long-name-of-a-service-31",
    "service-that-ends-like-anothe-a",
    "service-that-ends-like-anothe-b",
)
RELEASES, REPLICAS = 400, 16
PERSON, SERVICE_ACCOUNT = "0123abcd", "sa-0123456789abcdef"
"""Whose hash SkyPilot puts behind a name: 8 characters, or 19."""


def names(service: str, installation: str = "1") -> Iterator[str]:
    for number, replica in product(range(RELEASES), range(REPLICAS)):
        release = release_id(service, "maker/model", f"{number:040x}", EngineSettings(4096, 4))
        yield cluster_name(installation, f"{release}-{replica}")


@pytest.fixture(scope="module")
def limits() -> dict[str, int]:
    """The longest name in each cloud that SkyPilot knows."""
    clouds = skypilot().utils.registry.CLOUD_REGISTRY.values()
    found = {repr(cloud): getattr(cloud, "_MAX_CLUSTER_NAME_LEN_LIMIT", None) for cloud in clouds}
    assert {"GCP", "Azure", "Kubernetes", "AWS", "SCP", "Slurm"} <= {*found}
    return {cloud: limit for cloud, limit in found.items() if limit is not None}


@pytest.mark.parametrize("user", [PERSON, SERVICE_ACCOUNT])
def test_no_cloud_cuts_a_name_or_makes_two_alike(
    user: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SkyPilot's own function, under either kind of user; only Samsung's 28 are too few for a service account."""
    monkeypatch.setenv(skypilot().skylet.constants.USER_ID_ENV_VAR, user)
    on_cloud = skypilot().utils.common_utils.make_cluster_name_on_cloud
    drawn = [name for service in SERVICES for name in names(service)]
    assert len({*drawn}) == len(SERVICES) * RELEASES * REPLICAS
    tightest = min(limit for cloud, limit in limits.items() if user == PERSON or cloud != "SCP")
    for name in drawn:
        assert on_cloud(name, max_length=tightest) == f"{name}-{user}"


def test_the_names_of_before_were_alike() -> None:
    """What the fault was: SkyPilot cuts what is long, and tells apart by two characters what it has cut."""
    on_cloud = skypilot().utils.common_utils.make_cluster_name_on_cloud
    releases = [f"customer-support-assistant-{Random(seed).getrandbits(32):08x}" for seed in range(100)]  # noqa: S311 - the same each time
    fleets = [[on_cloud(f"{release}-{n}", max_length=35) for n in range(REPLICAS)] for release in releases]
    assert any(len({*fleet}) < REPLICAS for fleet in fleets)


@pytest.mark.parametrize("service", SERVICES)
def test_a_name_is_a_name_everywhere(service: str) -> None:
    """For Kubernetes, hosts and clouds: it begins with a letter, and has lower case, digits and a dash in it."""
    for name in islice(names(service), 200):
        assert re.fullmatch(r"[a-z][a-z0-9]*-[a-z0-9]+", name)
        assert len(name) <= LONGEST


@pytest.mark.parametrize("replica", ["", "-", "0", "_._", "Ünïcode-0", "UPPER-0", "9lives-1"])
def test_odd_replicas_have_names_as_well(replica: str) -> None:
    """Whatever somebody calls a replica from Python."""
    assert re.fullmatch(r"[a-z][a-z0-9]*-[a-z0-9]+", cluster_name("", replica))


def test_another_installations_replica_has_another_name() -> None:
    """Of the same service, model and release."""
    assert not {*islice(names("chat", "1"), 1000)} & {*islice(names("chat", "2"), 1000)}
