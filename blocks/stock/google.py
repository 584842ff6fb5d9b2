"""What Google says of its spot machines: how likely one can be had now, and for how long most of them run.

The obtainability "indicates the likelihood of successfully obtaining (provisioning) the requested number of VMs", from
0 to 1 (Compute Engine's API reference), and is taken as that. Up to 0.3 Google calls it low, 0.4 to 0.6 medium, from
0.7 high ("View the availability of Spot VMs"). All this is in preview, by the beta API; the lock has no client for it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus

import google.auth
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.auth.transport.requests import AuthorizedSession, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from requests import Response
from requests.exceptions import ReadTimeout, RequestException

from blocks.errors import Refused, Unavailable
from blocks.ports.market import Offer
from blocks.stock.source import Answers, Forecast, Spot, one_line

HOME = "https://compute.googleapis.com/compute/beta"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
AT_ONCE = 8
"""Questions side by side. Each is about one kind of machine: of several Google would say one thing for all."""
CONNECT_SECONDS = 5
RATE_LIMIT = "rateLimitExceeded"
"""How Compute Engine says with a 403 that it has been asked too often in this minute."""

NOT_ASKED = "accelerators that are added to an N1 machine are not asked of Google"
"""The machine's own score is not theirs. The API's reference has a field for them, of which the guide says nothing."""


class Answered(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class Scores(Answered):
    obtainability: float | None = Field(default=None, ge=0, le=1)
    estimated_uptime: str | None = None
    """As `3600s`: most of the machines run at least for so long."""


class Recommendation(Answered):
    scores: Scores = Scores()


class Advice(Answered):
    recommendations: list[Recommendation] = []


class CapacityAdvice:
    """Compute Engine's advice.capacity, asked with the credentials that google-auth finds: they are SkyPilot's too."""

    cloud = "gcp"

    def __init__(self, *, endpoint_url: str = HOME, seconds: float = 10) -> None:
        """`seconds` is how long Google may take for one question."""
        self._endpoint_url = endpoint_url
        self._seconds = seconds

    def knows(self, offer: Offer) -> bool:
        return offer.use_spot

    def ask(self, offers: Sequence[Offer]) -> Answers:
        """What Google says of each, with Unavailable for those on which it gives no advice.

        Refused where Google takes no credentials of ours. Unavailable where it is not reached, no project is known, or
        the advice is kept from us.
        """
        spots = sorted({Spot.of(offer) for offer in offers if not _is_added(offer)}, key=str)
        try:
            credentials, project = google.auth.default(scopes=[SCOPE])
            if not project:
                raise Unavailable("no project is known to ask Google for its advice; set GOOGLE_CLOUD_PROJECT")
            credentials.refresh(Request())  # here, before eight want to at once
            # The first error that is about all questions ends them: nobody waits longer than for one answer.
            with AuthorizedSession(credentials) as session, ThreadPoolExecutor(AT_ONCE) as pool:
                told = dict(zip(spots, pool.map(partial(self._told, session, project), spots), strict=True))
        except (DefaultCredentialsError, RefreshError) as error:
            raise Refused(
                f"Google takes no credentials of ours ({one_line(str(error))}); "
                "run `gcloud auth application-default login` and `sky check gcp`"
            ) from None
        except (GoogleAuthError, RequestException) as error:
            raise Unavailable(f"Google was not reached for its advice: {one_line(str(error))}") from None
        return {offer: Unavailable(NOT_ASKED) if _is_added(offer) else told[Spot.of(offer)] for offer in offers}

    def _told(self, session: AuthorizedSession, project: str, spot: Spot) -> Forecast | Unavailable:
        zones = {"zones": [{"zone": f"zones/{spot.zone}"}]} if spot.zone else {}
        question = {
            "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
            "instanceFlexibilityPolicy": {"instanceSelections": {"asked": {"machineTypes": [spot.instance]}}},
            "distributionPolicy": {"targetShape": "ANY", **zones},
            "size": 1,
        }
        what = f"{spot.instance} in gcp/{spot.zone or spot.region}"
        url = f"{self._endpoint_url}/projects/{project}/regions/{spot.region}/advice/capacity"
        try:
            answer = session.post(url, json=question, timeout=(CONNECT_SECONDS, self._seconds))
        except ReadTimeout:
            return Unavailable(f"Google gives no advice on {what} within {self._seconds:g} s")
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise RefreshError(_said(answer))
        if answer.status_code == HTTPStatus.FORBIDDEN and RATE_LIMIT not in answer.text:
            raise Unavailable(f"Google keeps its advice from us; allow compute.advice.capacity: {_said(answer)}")
        try:
            return _read(answer, what)
        except Unavailable as error:
            return error


def _read(answer: Response, what: str) -> Forecast:
    if answer.status_code in {HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}:
        raise Unavailable("Google answers no more questions for its advice in this minute; ask again later")
    if answer.status_code != HTTPStatus.OK:
        raise Unavailable(f"Google gives no advice on {what}: {answer.status_code} {_said(answer)}")
    try:
        recommended = Advice.model_validate_json(answer.content).recommendations
    except ValidationError:
        raise Unavailable(f"Google's answer on {what} is no advice") from None
    scores = recommended[0].scores if recommended else Scores()
    if scores.obtainability is None:
        raise Unavailable(f"Google gives no advice on {what}")
    stays = f", most stay for {scores.estimated_uptime}" if scores.estimated_uptime else ""
    return Forecast(scores.obtainability, f"obtainability {scores.obtainability:g} of 1 for {what}{stays}")


def _is_added(offer: Offer) -> bool:
    """Other machine types have their accelerators built in."""
    return bool(offer.accelerators) and (offer.instance or "").startswith("n1-")


def _said(answer: Response) -> str:
    """Google's message, in one line; of what is none, the beginning."""
    try:
        return one_line(str(answer.json()["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return one_line(answer.text)
