"""What AWS says of its spot machines: a score from 1 to 10 for each region, no count, and no promise.

The score is for the machines named in the question taken together, and AWS calls it always low for one or two kinds:
it orders regions, and says little in itself.
"""

from collections.abc import Sequence
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from blocks.errors import Refused, Unavailable
from blocks.spot.stock import by

HOME_REGION = "us-east-1"
"""Where the question is asked; it may be about any region."""

REGIONS_AT_ONCE = 10
KEYS_REFUSED = {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken", "OptInRequired"}
"""With these AWS rents us nothing; where it only keeps the scores from us, it may well."""


class SpotPlacementScores:
    """EC2's GetSpotPlacementScores, asked with the credentials that boto3 finds, which are also SkyPilot's."""

    def __init__(self, *, endpoint_url: str | None = None, replicas: int = 1) -> None:
        self._endpoint_url = endpoint_url
        self._replicas = replicas

    def ask(self, instances: Sequence[str], regions: Sequence[str]) -> dict[str, int]:
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
                        TargetCapacity=self._replicas,
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
