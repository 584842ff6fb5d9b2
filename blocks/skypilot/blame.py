"""Whose fault is it that SkyPilot launched nothing: ours, the cell's, or is that not known?

By the type of the error first, then by the code in its words. SkyPilot keeps most of what a cloud said to itself and
tells its client types of its own; what crosses from its server is named here by its name, for what SkyPilot does not
know there becomes a plain Exception. (`sky/exceptions.py`; `FailoverCloudErrorHandlerV2` in
`sky/backends/cloud_vm_ray_backend.py`; `sky/provision/*/`; of SkyPilot 0.14.1.)
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from blocks.cleaning import COLOURS
from blocks.skypilot.clusters import structured

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
    "SSOTokenLoadError", "CredentialRetrievalError", "ProfileNotFound", "NoAuthTokenError", "ConfigParseError",
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
    "MissingAuthenticationToken", "PendingVerification", "InvalidAMIID.Malformed", "InvalidBlockDeviceMapping",
    # GCP: https://cloud.google.com/apis/design/errors and what SkyPilot's handler stops all regions for
    "IAM_PERMISSION_DENIED", "invalid_grant", "accessNotConfigured", "SERVICE_DISABLED", "BILLING_DISABLED",
    "VPC_NOT_FOUND", "GPUS_ALL_REGIONS",
    # Azure: https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors
    "AuthenticationFailed", "AuthorizationFailed", "InvalidAuthenticationToken", "ExpiredAuthenticationToken",
    "InvalidAuthenticationTokenTenant", "ReadOnlyDisabledSubscription", "SubscriptionNotFound",
    "MissingSubscriptionRegistration", "MarketplacePurchaseEligibilityFailed",
    # Kubernetes: an image that cannot be had
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
}  # fmt: skip
"""Of the account, wherever one asks. A quota of one region is that region's no, and another may have room."""
_CODES = frozenset(map(str.casefold, (*CODES, *OURS)))
_PHRASES = re.compile(
    r"Policy update access denied|disk size cannot be smaller than the image"
    r"|global/(?:invalid-api-key|account-inactive)",
    re.IGNORECASE,
)
"""Where no code says it: what SkyPilot stops all of GCP for, and Lambda's own."""
_OF_THE_REGION_OR_OURS = re.compile(
    r"in this region is being validated|in a service control policy|InvalidAMIID\.NotFound"
    r"|not able to validate the provided access credentials",
    re.IGNORECASE,
)
"""Of AWS, with a code of the account's: a region that is not opted in, not allowed, or without that image says so too.
"""
_WORD = re.compile(r"[A-Za-z0-9_.]+")
_NOT_LET_IN = re.compile(
    r"(?:HttpError |HTTP (?:Error )?|status(?: code)?:? |\()401\b|\b401 Client Error", re.IGNORECASE
)
"""HTTP's own status, as each of their libraries words it."""


def who_is_to_blame(error: BaseException) -> Blame:
    if find_ours(error) is not None:
        return "ours"
    if any(_OF_THE_REGION_OR_OURS.search(_words_of(one)) for one in _told_of(error)):
        return "unknown"  # until further cells say the same
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
    words = _words_of(error)
    if _OF_THE_REGION_OR_OURS.search(words):
        return False
    found = {name.casefold() for word in _WORD.findall(words) for name in _names_in(word)}
    return bool(found & _CODES or _NOT_LET_IN.search(words) or _PHRASES.search(words))


def _words_of(error: BaseException) -> str:
    return COLOURS.sub(" ", f"{error} {getattr(error, 'detailed_reason', None) or ''} {structured(error)}")


def _names_in(word: str) -> Iterator[str]:
    """A code may have a point in it, and the name of a type stands behind those of its modules."""
    parts = word.split(".")
    yield from parts
    yield from map(".".join, pairwise(parts))


def _names(error: BaseException) -> set[str]:
    """Of its type and of what that inherits from, and of the type that SkyPilot has wrapped or could not make anew."""
    names = {kind.__name__ for kind in type(error).__mro__}
    names.add(str(getattr(error, "error_type", "")))
    if type(error) is Exception:  # `deserialize_exception`: "TypeOfTheServer: its words"
        names.add(str(error).partition(":")[0])
    return names
