"""What installations that share one SkyPilot, or one machine, see of each other; and whose fault a failed launch is."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from blocks.errors import NoCapacity, Refused, Unexplained
from blocks.local.fleet import LocalFleet
from blocks.ports.fleet import EngineSettings, Replica, ReplicaOrder
from blocks.ports.market import Offer
from blocks.ports.store import MANIFEST
from blocks.skypilot.blame import who_is_to_blame
from blocks.skypilot.clusters import SkyPilot, reason
from blocks.skypilot.names import cluster_name
from blocks.stores.s3 import S3Store
from tests.fakes.skypilot import PaperFleet, PaperSkyPilot
from tests.mirroring import manifest_of_nothing
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

ORDER = ReplicaOrder(
    "chat-1a-0", "chat", "chat-1a", "models/maker/paper/1/", EngineSettings(context_tokens=512, parallel_requests=1)
)
OFFER = Offer("aws/us-east-1", "L4", 1, 24, 64, use_spot=False, dollars_per_hour=0.8)
OLD = {
    "SKYFERRY_SERVICE": "chat",
    "SKYFERRY_RELEASE": "chat-1a",
    "SKYFERRY_REPLICA": "chat-1a-0",
    "SKYFERRY_CELL": "aws/us-east-1",
    "SKYFERRY_DOLLARS_PER_HOUR": "",
    "SKYFERRY_IS_TLS": "no",
    "SKYFERRY_PORT": "8000",
}
"""What a cluster was told before there were installations; it was called what its replica is called."""


@pytest.fixture
def paper() -> PaperSkyPilot:
    return PaperSkyPilot()


@pytest.fixture
def fleet(paper: PaperSkyPilot, s3_store: S3Store, tmp_path: Path) -> PaperFleet:
    if s3_store.get(ORDER.mirror_prefix + MANIFEST) is None:
        s3_store.put(ORDER.mirror_prefix + MANIFEST, manifest_of_nothing(ORDER.mirror_prefix), replacing=None)
    fleet = PaperFleet(directory=tmp_path, store=s3_store, task="run: serve")
    fleet._paper = paper
    return fleet


@pytest.mark.server
def test_the_same_order_of_two_installations_is_two_replicas(fleet: PaperFleet, paper: PaperSkyPilot) -> None:
    """Same service, model and release: each lists, adopts and stops its own, and the other one's is not touched."""
    production, staging = fleet.of_installation("aa"), fleet.of_installation("bb")
    production.launch(ORDER, OFFER)
    assert staging.replicas("chat") == ()
    staging.stop(ORDER.name)
    assert len(production.replicas("chat")) == 1
    staging.launch(ORDER, OFFER)
    assert len(paper.standing) == 2
    assert production.launch(ORDER, OFFER) == production.replicas("chat")[0]
    staging.stop(ORDER.name)
    assert staging.replicas("chat") == ()
    assert [replica.name for replica in production.replicas("chat")] == [ORDER.name]
    assert "last words" in staging.log_tail(ORDER.name)
    assert len(fleet.every_replica()) == 1


@pytest.mark.server
def test_replicas_from_before_there_were_installations_are_adopted(fleet: PaperFleet, paper: PaperSkyPilot) -> None:
    """Under their old names, by the installation whose release they are of, and by no other."""
    paper.add("chat-1a-0", OLD)
    heir, stranger = fleet.of_installation("aa", {"chat-1a"}), fleet.of_installation("bb")
    assert stranger.replicas("chat") == ()
    stranger.stop(ORDER.name)
    adopted = heir.launch(ORDER, OFFER)
    assert [*paper.standing] == ["chat-1a-0"]
    assert heir.replicas("chat") == (adopted,)
    heir.stop(ORDER.name)
    assert not paper.standing


@pytest.mark.server
def test_a_cluster_of_that_name_that_is_nobodys_replica_is_left_alone(fleet: PaperFleet, paper: PaperSkyPilot) -> None:
    """Neither adopted nor stopped, in words; one that only has the task's environment is not even listed."""
    paper.add(cluster_name("aa", ORDER.name), {})
    own = fleet.of_installation("aa")
    for act in (lambda: own.launch(ORDER, OFFER), lambda: own.stop(ORDER.name)):
        with pytest.raises(Refused, match="not Skyferry's"):
            act()
    paper.add("somebodys-own", OLD)
    assert fleet.every_replica() == ()
    assert len(paper.standing) == 2


@pytest.mark.server
def test_an_ended_job_is_known_from_a_lost_machine(fleet: PaperFleet, paper: PaperSkyPilot) -> None:
    """Only a machine that is there can say that its engine has ended."""
    fleet.launch(ORDER, OFFER)
    (called,) = paper.standing
    assert not fleet.has_ended(ORDER.name)
    paper.job_of[called] = "ended"
    assert fleet.has_ended(ORDER.name)
    paper.job_of[called] = "unknown"
    assert not fleet.has_ended(ORDER.name)
    del paper.standing[called]
    assert not fleet.has_ended(ORDER.name)


class Named(Exception):
    """As SkyPilot's client makes one anew."""

    def __init__(self, words: str = "", **attributes: Any) -> None:
        super().__init__(words)
        self.__dict__.update(attributes)


def named(name: str, words: str = "", base: type[Exception] = Named, **attributes: Any) -> Exception:
    return type(name, (base,), {})(words, **attributes)


def after_failover(
    *history: Exception, words: str = "Failed to provision all possible launchable resources."
) -> Exception:
    return named("ResourcesUnavailableError", words, failover_history=[*history])


OURS = [
    after_failover(named("CloudUserIdentityError", "Failed to get AWS user.\n  Reason: the SSO session has expired")),
    after_failover(
        named("ResourcesUnavailableError", "Failed to acquire resources.\nReason: InvalidCloudCredentials: no profile")
    ),
    named("ResourcesUnavailableError", "An error occurred\nError code: \x1b[1mExpiredToken\x1b[0m"),
    named("InvalidCloudCredentials", "('invalid_grant: Bad Request', …)"),
    named("NoCloudAccessError", "Cloud access is not set up. Run: `sky check`"),
    named("CloudError", "azure error (ClientAuthenticationError): …", error_type="ClientAuthenticationError"),
    named("CloudError", "botocore error (ClientError): An error occurred (UnauthorizedOperation) when calling …"),
    named("HttpError", "<HttpError 401 when requesting https://compute.googleapis.com/…>"),
    named("ApiException", "(401)\nReason: Unauthorized"),
    named("ProvisionerError", "Got return code", errors=[{"code": "IAM_PERMISSION_DENIED", "message": "…"}]),
    named("ProvisionerError", "Got return code", errors=[{"code": "quotaExceeded", "message": "…"},
                                                           {"code": "invalid_grant", "message": "…"}]),
    named("ResourcesUnavailableError", "Reason: Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally."),
    after_failover(named("ResourcesUnavailableError", "Reason: container failed: ImagePullBackOff: no such tag")),
    named("StorageBucketGetError", "…", base=type("StorageError", (Named,), {})),
    Exception("CloudUserIdentityError: Failed to get GCP user"),
    named("KubernetesValidationError", "spec.containers[0]: extra field"),
    # A type behind the names of its modules.
    after_failover(Exception("google.auth.exceptions.RefreshError: Reauthentication is needed. Please run …")),
    after_failover(Exception("azure.identity._exceptions.CredentialUnavailableError: Please run 'az login'")),
    after_failover(Exception("azure.core.exceptions.ClientAuthenticationError: (AADSTS700082) it has expired")),
    # As GCP's errors reach SkyPilot: the name of the quota stands in the message.
    after_failover(
        named("ProvisionerError", "Failed to launch instances.", errors=[
            {"code": "QUOTA_EXCEEDED", "message": "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally."}])
    ),
    after_failover(
        named("ProvisionerError", "Operation failed", errors=[
            {"code": "invalid", "message": "Requested disk size cannot be smaller than the image size (50 GB)"}])
    ),
    after_failover(
        named("ProvisionerError", "Operation failed", errors=[{"code": 403, "message": "Policy update access denied."}])
    ),
    after_failover(named("SSOTokenLoadError", "Error loading SSO Token: Token for p does not exist")),
    after_failover(named("CredentialRetrievalError", "Error when retrieving credentials from custom-process")),
    after_failover(named("ClientError", "An error occurred (InvalidBlockDeviceMapping) when calling the RunInstances "
                                        "operation: Volume of size 100GB is smaller than snapshot 'snap-0'")),
    after_failover(Exception("(MarketplacePurchaseEligibilityFailed) returned errors")),
    after_failover(Exception("global/invalid-api-key: API key was invalid, expired, or deleted.")),
    after_failover(Exception("401 Client Error: Unauthorized for url: https://rest.runpod.io/v1/pods")),
    after_failover(Exception("urllib.error.HTTPError: HTTP Error 401: Unauthorized")),
    after_failover(named("ClientError", "(PendingVerification) Your account is pending verification.")),
]  # fmt: skip
THE_CELLS = [
    after_failover(
        named("ResourcesUnavailableError", "Failed to acquire resources in all zones in us-east-1 for {L4}.")
    ),
    named("KubeAPIUnreachableError", "no answer", base=type("ResourcesUnavailableError", (Named,), {})),
    named("ResourcesUnavailableError", "Quota 'CPUS' exceeded.  Limit: 24.0 in region us-west1."),
    named("ResourcesUnavailableError", "Location us-east1-d is not found or access is unauthorized."),
    TimeoutError(),
    named("ProvisionUnsupportedError", "no such shape"),
    after_failover(named("ClientError", "An error occurred (VcpuLimitExceeded) when calling …: limit of 0 vCPUs")),
    after_failover(named("ClientError", "An error occurred (InsufficientInstanceCapacity) when calling …")),
    after_failover(
        named("ProvisionerError", "Failed to launch instances.", errors=[
            {"code": "VM_MIN_COUNT_NOT_REACHED", "message": "Requested minimum count of 1 VMs could not be created"},
            {"code": "QUOTA_EXCEEDED", "message": "Quota 'SSD_TOTAL_GB' exceeded.  Limit: 5.0 in region us-central1"}])
    ),
    after_failover(Exception("(SkuNotAvailable) Standard_NC is currently not available in location 'eastus'.")),
    after_failover(Exception("(OperationNotAllowed) exceeding approved NCFamily Cores quota, Location: eastus")),
    after_failover(Exception('pods "x" is forbidden: exceeded quota: gpu, requested: requests.nvidia.com/gpu=1')),
    after_failover(Exception("sbatch: error: QOSMaxSubmitJobPerUserLimit")),
    after_failover(Exception("instance-operations/launch/insufficient-capacity: Not enough capacity")),
]  # fmt: skip
UNKNOWN = [
    RuntimeError("it did not work"), named("CommandError", "sinfo failed with return code 1"), ValueError("?"),
    # Of the account, or of a region that is not opted in, not allowed or not checked yet: three of them tell.
    after_failover(named("ClientError", "(AuthFailure) AWS was not able to validate the provided access credentials")),
    after_failover(
        named("ClientError", "(UnauthorizedOperation) User: x is not authorized to perform: ec2:RunInstances with an "
                             "explicit deny in a service control policy. Encoded authorization failure message: a9Zk")
    ),
    after_failover(
        named("ClientError", "(PendingVerification) Your request for accessing resources in this region is being "
                             "validated, and you will not be able to launch additional resources in this region")
    ),
    after_failover(named("ClientError", "(InvalidAMIID.NotFound) The image id '[ami-0d]' does not exist")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        *((error, "ours") for error in OURS),
        *((error, "the cell's") for error in THE_CELLS),
        *((error, "unknown") for error in UNKNOWN),
    ],
)
def test_whose_fault_it_is_that_nothing_was_launched(error: Exception, blame: str) -> None:
    """By type first, then by code; what nobody knows stays unknown, and a region's quota is that region's no."""
    assert who_is_to_blame(error) == blame


def test_the_words_of_a_no_are_what_the_cloud_said() -> None:
    """SkyPilot's own say less, and what is different each time would hide that cells say the same."""
    said = named(
        "ProvisionerError", "Failed to launch instances.", errors=[{"code": "invalid", "message": "too small"}]
    )
    assert reason(after_failover(said)) == reason(said) == "invalid: too small"
    denied = named("ClientError", "(UnauthorizedOperation) no. Encoded authorization failure message: a9ZkX")
    assert reason(after_failover(denied)) == "(UnauthorizedOperation) no."


@pytest.mark.server
@pytest.mark.parametrize(("error", "kind"), [(OURS[0], Refused), (THE_CELLS[0], NoCapacity), (UNKNOWN[0], Unexplained)])
def test_a_launch_says_whose_fault_it_was(
    fleet: PaperFleet, paper: PaperSkyPilot, error: Exception, kind: type[Exception]
) -> None:
    """What is ours is refused, with its name and what to do, and is no cell's no."""
    paper.fails_with.append(error)
    with pytest.raises(kind) as raised:
        fleet.launch(ORDER, OFFER)
    assert type(raised.value) is kind
    assert ("CloudUserIdentityError" in str(raised.value) and "sky check" in str(raised.value)) == (kind is Refused)
    assert not paper.standing


@pytest.mark.server
def test_what_is_no_task_for_skypilot_is_refused_before_anything_is_asked(fleet: PaperFleet) -> None:
    """As where a flag or field is none: each cell would say the same."""
    real = fleet.model_copy(update={"task": "{run: serve, resources: {no_such_field: 1}}"})
    task = real._task(ORDER, OFFER, 8000, fleet.directory / "sent")
    with pytest.raises(Refused, match=r"does not take the task of chat-1a-0.*no_such_field"):
        SkyPilot().launch("chat-x", task, autodown_minutes=None, timeout_seconds=1)


@pytest.fixture
def machine(tmp_path: Path) -> LocalFleet:
    return LocalFleet(directory=tmp_path, store=S3Store(bucket="none"))


def pretend(fleet: LocalFleet, home: str, order: ReplicaOrder) -> Replica:
    """A replica whose process is this one."""
    directory = fleet.directory / "replicas" / home
    directory.mkdir(parents=True, exist_ok=True)
    replica = Replica(order.name, order.service, order.release, "local", "127.0.0.1:1", launched_at=0)
    (directory / f"{order.name}.json").write_text(json.dumps(asdict(replica)))
    own = psutil.Process()
    (directory / f"{order.name}.pid").write_text(json.dumps({"pid": own.pid, "created": own.create_time()}))
    return replica


def test_installations_on_one_machine_see_their_own(machine: LocalFleet) -> None:
    """Also where the names of their replicas are the same; what bears no mark is its heir's."""
    other = replace(ORDER, name="chat-2b-0", release="chat-2b")
    production = pretend(machine, "aa", ORDER)
    old = pretend(machine, "", other)
    assert machine.of_installation("aa").replicas("chat") == (production,)
    assert machine.of_installation("bb").replicas("chat") == ()
    assert machine.of_installation("aa", {"chat-2b"}).replicas("chat") == (production, old)
    assert machine.of_installation("aa", {"chat-2b"}).launch(other, OFFER) == old
    assert machine.replicas("chat") == (old,)
    assert {*machine.every_replica()} == {production, old}
    machine.of_installation("bb", {"chat-1a"}).stop("chat-2b-0")
    assert machine.replicas("chat") == (old,)
