"""What Azure says of its spot machines: high, medium or low for each size and region, and no promise.

"A score of High indicates that the deployment is highly likely to succeed while a score of Low indicates that the
deployment has a low chance of success" ("Spot Placement Score", Microsoft Learn, 19 May 2026), which names no numbers.
The library comes with `skyferry[azure]`; Azure's own client for these scores exists as a beta alone.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from azure.core import PipelineClient
from azure.core.credentials import TokenCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError, ServiceResponseError
from azure.core.pipeline.policies import BearerTokenCredentialPolicy
from azure.core.rest import HttpRequest, HttpResponse
from azure.identity import DefaultAzureCredential
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from blocks.errors import NoCapacity, Refused, SkyferryError, Unavailable
from blocks.ports.market import Offer
from blocks.stock.source import Answers, Forecast, Spot, by, one_line

HOME = "https://management.azure.com"
HOME_REGION = "eastus"
"""Where the question is asked; it may be about any region."""
API_VERSION = "2025-06-05"
SIZES_AT_ONCE, REGIONS_AT_ONCE = 5, 8
CONNECT_SECONDS = 5
SUBSCRIPTION = "AZURE_SUBSCRIPTION_ID"
"""The variable that Azure's own samples read the subscription from."""

LIKELIHOOD = {"High": 0.85, "Medium": 0.5, "Low": 0.15}
"""Azure's words, in the middles of what Google calls high, medium and low (blocks/stock/google.py): an assumption."""


Told = dict[tuple[str, str], Forecast | SkyferryError]
"""By size and region, in lower case."""


class Answered(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class PlacementScore(Answered):
    sku: str
    region: str
    score: str
    is_quota_available: bool | None = None


class PlacementScores(Answered):
    placement_scores: list[PlacementScore]


class SpotPlacementScores:
    """Spot Placement Scores, asked with the credentials that azure-identity finds, the command line's among them."""

    def __init__(
        self,
        *,
        endpoint_url: str = HOME,
        credential: Callable[[], TokenCredential] = DefaultAzureCredential,
        seconds: float = 20,
    ) -> None:
        """`seconds` is how long Azure may take for one question."""
        self._endpoint_url = endpoint_url
        self._credential = credential
        self._seconds = seconds

    def ask(self, offers: Sequence[Offer]) -> Answers:
        """What Azure says of each; sizes and regions that it leaves out are not in it.

        Refused where Azure takes no credentials of ours. Unavailable where it is not reached, no subscription is named,
        or the scores are kept from us; where one question of several has no answer, only its offers have that error.
        """
        subscription = os.environ.get(SUBSCRIPTION)
        if not subscription:
            raise Unavailable(f"Azure scores for a subscription, and none is named; set {SUBSCRIPTION}")
        regions: dict[str, set[str]] = defaultdict(set)
        for spot in map(Spot.of, offers):
            regions[spot.instance].add(spot.region)
        told: Told = {}
        try:
            policy = BearerTokenCredentialPolicy(self._credential(), f"{HOME}/.default")
            with PipelineClient(self._endpoint_url, policies=[policy]) as client:
                for sizes in by(SIZES_AT_ONCE, sorted(regions)):
                    for places in by(REGIONS_AT_ONCE, sorted(set().union(*(regions[size] for size in sizes)))):
                        told |= self._told(client, subscription, sizes, places)
        except ClientAuthenticationError as error:
            raise Refused(
                f"Azure takes no credentials of ours ({one_line(error.message)}); run `az login` and `sky check azure`"
            ) from None
        except AzureError as error:
            raise Unavailable(f"Azure was not reached for its scores: {one_line(error.message)}") from None
        keys = {offer: _key(spot.instance, spot.region) for offer in offers for spot in [Spot.of(offer)]}
        return {offer: told[key] for offer, key in keys.items() if key in told}

    def _told(self, client: Any, subscription: str, sizes: Sequence[str], regions: Sequence[str]) -> Told:
        question = HttpRequest(
            "POST",
            f"/subscriptions/{subscription}/providers/Microsoft.Compute/locations/{HOME_REGION}"
            "/placementScores/spot/generate",
            params={"api-version": API_VERSION},
            json={
                "desiredLocations": regions,
                "desiredSizes": [{"sku": size} for size in sizes],
                "desiredCount": 1,
                "availabilityZones": False,
            },
        )
        question.url = client.format_url(question.url)
        try:
            answer = client.send_request(question, connection_timeout=CONNECT_SECONDS, read_timeout=self._seconds)
        except ServiceResponseError as error:
            return _each(sizes, regions, Unavailable(f"Azure did not answer for its scores: {one_line(error.message)}"))
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise ClientAuthenticationError(_said(answer))
        if answer.status_code == HTTPStatus.FORBIDDEN:
            raise Unavailable(f"Azure keeps its scores from us; have the Compute Recommendations Role: {_said(answer)}")
        try:
            return {_key(score.sku, score.region): _meaning(score) for score in _read(answer)}
        except Unavailable as error:
            return _each(sizes, regions, error)


def _read(answer: HttpResponse) -> Sequence[PlacementScore]:
    if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        raise Unavailable("Azure answers no more questions for its scores for now; ask again later")
    if answer.status_code != HTTPStatus.OK:
        raise Unavailable(f"Azure did not answer for its scores: {answer.status_code} {_said(answer)}")
    try:
        return PlacementScores.model_validate_json(answer.content).placement_scores
    except ValidationError:
        raise Unavailable("Azure's answer is no list of placement scores") from None


def _meaning(score: PlacementScore) -> Forecast | SkyferryError:
    """In this order: what is never rented to us, what our quota has no room for, and only then how likely it is."""
    where = f"{score.sku} in azure/{score.region}"
    if score.score == "RestrictedSkuNotAvailable":
        return Refused(f"Azure rents this subscription no {where} on spot; ask it to, or name other cells")
    if score.is_quota_available is False:
        return NoCapacity(
            f"azure/{score.region}", f"the quota for spot machines has no room for {score.sku}; ask for more"
        )
    if score.score == "DataNotFoundOrStale":
        return Unavailable(f"Azure has no fresh data on {where}")
    if score.score not in LIKELIHOOD:
        return Unavailable(f"Azure scores {where} as {score.score}, which says nothing here")
    return Forecast(LIKELIHOOD[score.score], f"spot placement score {score.score} for {where}")


def _each(sizes: Sequence[str], regions: Sequence[str], error: Unavailable) -> Told:
    return {_key(size, region): error for size in sizes for region in regions}


def _said(answer: HttpResponse) -> str:
    """Azure's message, in one line; of what is none, the beginning."""
    try:
        return one_line(f"{(error := answer.json()['error'])['code']}: {error['message']}")
    except (ValueError, KeyError, TypeError):
        return one_line(answer.text())


def _key(size: str, region: str) -> tuple[str, str]:
    return size.casefold(), region.casefold()
