"""Whose fault is it that SkyPilot launched nothing: ours, the cell's, or is that not known?

By the type of the error first, then by the code in its words. SkyPilot keeps most of what a cloud said to itself and
tells its client types of its own; what crosses from its server is named here by its name, for what SkyPilot does not
know there becomes a plain Exception. (`sky/exceptions.py`; `FailoverCloudErrorHandlerV2` in
`sky/backends/cloud_vm_ray_backend.py`; `sky/provision/*/`; of SkyPilot 0.14.1.)
"""

import re
from collections.abc import Iterator
from typing import Literal

from blocks.skypilot.clusters import COLOURS

Blame = Literal["ours", "the cell's", "unknown"]

OURS = {
    # Credentials, identities, and settings of SkyPilot's.
    "InvalidCloudCredentials", "CloudUserIdentityError", "ClusterOwnerIdentityMismatchError", "NoCloudAccessError",
    "InvalidCloudConfigs", "InvalidSkyPilotConfigError", "InvalidWorkspaceNameError", "WorkspaceAmbiguousError",
    "RestfulPolicyError",
    # The task: it asks for what cannot be, wherever it runs.
    "KubernetesValidationError", "ResourcesMismatchError", "StorageError", "StorageSpecError", "VolumeNotFoundError",
    "VolumeTopologyConflictError", "GitError",
    # What clouds' own libraries raise, which SkyPilot wraps as CloudError with this name, or quotes.
    "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "UnauthorizedSSOTokenError",
    "RefreshError", "DefaultCredentialsError", "ClientAuthenticationError", "CredentialUnavailableError",
}  # fmt: skip
"""Types; what inherits from them as well."""
THE_CELLS = {
    "ResourcesUnavailableError", "ProvisionUnsupportedError", "NotSupportedError", "KubernetesError", "TimeoutError",
}  # fmt: skip
"""No room there, or never for such a machine."""
CODES = {
    # AWS: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
    "ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId", "InvalidClientToken",
    "AuthFailure", "UnauthorizedOperation", "UnrecognizedClientException", "SignatureDoesNotMatch",
    "MissingAuthenticationToken", "PendingVerification", "InvalidAMIID.NotFound", "InvalidAMIID.Malformed",
    # GCP: https://cloud.google.com/apis/design/errors and what SkyPilot's handler stops all regions for
    "IAM_PERMISSION_DENIED", "invalid_grant", "accessNotConfigured", "SERVICE_DISABLED", "BILLING_DISABLED",
    "VPC_NOT_FOUND", "GPUS_ALL_REGIONS",
    # Azure: https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors
    "AuthenticationFailed", "AuthorizationFailed", "InvalidAuthenticationToken", "ExpiredAuthenticationToken",
    "InvalidAuthenticationTokenTenant", "ReadOnlyDisabledSubscription", "SubscriptionNotFound",
    "MissingSubscriptionRegistration",
    # Kubernetes: an image that cannot be had
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
}  # fmt: skip
"""Of the account, wherever one asks. A quota of one region is that region's no, and another may have room."""
_CODES = frozenset(map(str.casefold, (*CODES, *OURS)))
_WORD = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z]+)?")
_NOT_LET_IN = re.compile(r"(?:HttpError |HTTP |status(?: code)?:? |\()401\b", re.IGNORECASE)
"""HTTP's own status, as each of their libraries words it."""


def who_is_to_blame(error: BaseException) -> Blame:
    if find_ours(error) is not None:
        return "ours"
    return "the cell's" if _names(error) & THE_CELLS else "unknown"


def find_ours(error: BaseException) -> BaseException | None:
    """Of the error and those that it tells of, the first that no other cell mends."""
    return next((one for one in _told_of(error) if _is_ours(one)), None)


def _told_of(error: BaseException) -> Iterator[BaseException]:
    yield error
    for one in getattr(error, "failover_history", None) or ():
        if isinstance(one, BaseException):
            yield from _told_of(one)


def _is_ours(error: BaseException) -> bool:
    if _names(error) & OURS:
        return True
    words = COLOURS.sub(" ", f"{error} {getattr(error, 'detailed_reason', None) or ''}")
    found = {word.casefold() for word in _WORD.findall(words)}
    # Google's errors, which are structured.
    found |= {str(one.get("code")).casefold() for one in getattr(error, "errors", None) or () if isinstance(one, dict)}
    return bool(found & _CODES) or _NOT_LET_IN.search(words) is not None


def _names(error: BaseException) -> set[str]:
    """Of its type and of what that inherits from, and of the type that SkyPilot has wrapped or could not make anew."""
    names = {kind.__name__ for kind in type(error).__mro__}
    names.add(str(getattr(error, "error_type", "")))
    if type(error) is Exception:  # `deserialize_exception`: "TypeOfTheServer: its words"
        names.add(str(error).partition(":")[0])
    return names
