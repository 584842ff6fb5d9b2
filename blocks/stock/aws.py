"""What AWS says of its spot machines: a score from 1 to 10 for each region, no count, and no promise.

The score is for the machines named in the question taken together, and AWS calls it always low for one or two kinds:
it orders regions, and says little in itself.
"""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from blocks.errors import Refused, Unavailable
from blocks.ports.market import Offer
from blocks.stock.source import Answers, Score, Spot, by

HOME_REGION = "us-east-1"
"""Where the question is asked; it may be about any region."""

REGIONS_AT_ONCE = 10
KINDS_AT_ONCE = 8
"""Questions side by side."""
BEST = 10

KEYS_REFUSED = {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken", "OptInRequired"}
"""With these AWS rents us nothing; where it only keeps the scores from us, it may well."""


Kind = tuple[str, int, str]
"""Accelerator, how many, and the machine where it has none: machines without have only themselves in common."""


class SpotPlacementScores:
    """EC2's GetSpotPlacementScores, asked with the credentials that boto3 finds, which are also SkyPilot's."""

    cloud = "aws"

    def __init__(self, *, endpoint_url: str | None = None) -> None:
        self._endpoint_url = endpoint_url

    def knows(self, offer: Offer) -> bool:
        return offer.use_spot

    def ask(self, offers: Sequence[Offer]) -> Answers:
        """What AWS says of each; where one question has no answer, only its offers have that error.

        One question for each kind of replica, its machines together: AWS counts how many different ones it is asked in
        a day. Refused where AWS takes no credentials of ours.
        """
        kinds: dict[Kind, list[Offer]] = defaultdict(list)
        for offer in offers:
            instance = "" if offer.accelerators else offer.instance or ""
            kinds[offer.accelerator, offer.accelerators, instance].append(offer)
        with ThreadPoolExecutor(KINDS_AT_ONCE) as pool:
            return {
                offer: said for answers in pool.map(self._answers, kinds.values()) for offer, said in answers.items()
            }

    def _answers(self, alike: Sequence[Offer]) -> Answers:
        places = {offer: Spot.of(offer) for offer in alike}
        try:
            scores = self.scores(
                [place.instance for place in places.values()], [place.region for place in places.values()]
            )
        except Unavailable as error:
            return dict.fromkeys(alike, error)
        return {
            offer: Score(score, BEST, f"spot placement score {score} of {BEST} for {offer}")
            for offer, place in places.items()
            if (score := scores.get(place.region)) is not None
        }

    def scores(self, instances: Sequence[str], regions: Sequence[str]) -> dict[str, int]:
        """The score of each region for those machines together; a region that AWS leaves out is not in it.

        Refused where AWS knows no such keys or we have none, Unavailable where it does not answer the question.
        """
        scores: dict[str, int] = {}
        for asked in by(REGIONS_AT_ONCE, sorted(set(regions))):
            try:
                pages = (
                    self._client()
                    .get_paginator("get_spot_placement_scores")
                    .paginate(
                        InstanceTypes=sorted(set(instances)),
                        TargetCapacity=1,
                        TargetCapacityUnitType="units",
                        SingleAvailabilityZone=False,
                        RegionNames=asked,
                    )
                )
                for page in pages:
                    scores |= {found["Region"]: int(found["Score"]) for found in page["SpotPlacementScores"]}
            except ClientError as error:
                raise _translation(error) from None
            except (NoCredentialsError, PartialCredentialsError) as error:
                raise Refused(f"there are no whole credentials for AWS ({error}); run `sky check aws`") from None
            except BotoCoreError as error:
                raise Unavailable(f"AWS was not reached for its scores: {error}") from None
        return scores

    def _client(self) -> Any:
        return Session().client(
            "ec2",
            region_name=HOME_REGION,
            endpoint_url=self._endpoint_url,
            config=Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2}),
        )


def _translation(error: ClientError) -> Refused | Unavailable:
    code = error.response.get("Error", {}).get("Code", "")
    if code in KEYS_REFUSED:
        return Refused(f"AWS refuses the credentials: {code}; renew them and run `sky check aws`")
    if code == "UnauthorizedOperation":
        return Unavailable("AWS keeps its scores from us; allow ec2:GetSpotPlacementScores")
    if code == "MaxConfigLimitExceeded":
        return Unavailable("AWS answers no more kinds of questions for its scores today; name fewer accelerators")
    return Unavailable(f"AWS did not answer for its scores: {error}")
