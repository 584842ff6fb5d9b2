"""EC2's spot placement scores, over real HTTP against a server that answers as EC2 does."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

import pytest

from blocks.errors import Refused, Unavailable
from blocks.local.processes import free_port
from blocks.ports.market import Offer
from blocks.stock.aws import SpotPlacementScores
from blocks.stock.source import Score
from tests.loopback import Asked, answering

Forms = list[dict[str, str]]


@pytest.fixture(autouse=True)
def somebodys_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def page(scores: dict[str, int], next_token: str = "") -> tuple[int, str]:
    items = "".join(f"<item><region>{region}</region><score>{score}</score></item>" for region, score in scores.items())
    token = f"<nextToken>{next_token}</nextToken>" if next_token else ""
    body = f"<spotPlacementScoreSet>{items}</spotPlacementScoreSet>{token}"
    return 200, f'<R xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>1</requestId>{body}</R>'


def refusal(code: str) -> tuple[int, str]:
    error = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    return 400, f"<Response><Errors>{error}</Errors><RequestID>1</RequestID></Response>"


@contextmanager
def ec2(answers: dict[str, tuple[int, str]]) -> Iterator[tuple[SpotPlacementScores, Forms]]:
    """Answers by the token of the page that is asked for; what was asked is kept."""
    forms: Forms = []

    def answer(asked: Asked) -> tuple[int, bytes]:
        forms.append({name: values[0] for name, values in parse_qs(asked.body.decode()).items()})
        status, body = answers[forms[-1].get("NextToken", "")]
        return status, body.encode()

    with answering(answer) as (url, _):
        yield SpotPlacementScores(endpoint_url=url), forms


def test_scores_come_from_every_page() -> None:
    """AWS hands them out in pages, and leaves out regions that it knows nothing of."""
    with ec2({"": page({"us-east-1": 7}, next_token="more"), "more": page({"us-west-2": 1})}) as (scores, asked):
        assert scores.scores(["g6.xlarge"], ["us-east-1", "us-west-2", "eu-west-1"]) == {"us-east-1": 7, "us-west-2": 1}
    assert [form.get("NextToken") for form in asked] == [None, "more"]


def test_the_question_says_what_is_wanted() -> None:
    """All machines together, one replica, in regions and not in zones."""
    with ec2({"": page({})}) as (scores, asked):
        assert scores.scores(["g6.xlarge", "g6.2xlarge"], ["us-east-1"]) == {}
    (form,) = asked
    assert form["Action"] == "GetSpotPlacementScores"
    assert [form["InstanceType.1"], form["InstanceType.2"]] == ["g6.2xlarge", "g6.xlarge"]
    assert [form[name] for name in ("TargetCapacity", "TargetCapacityUnitType", "RegionName.1")] == [
        "1",
        "units",
        "us-east-1",
    ]
    assert form["SingleAvailabilityZone"] == "false"


def test_many_regions_are_asked_ten_at_a_time() -> None:
    """AWS answers for ten regions at most, so more are more questions."""
    with ec2({"": page({})}) as (scores, asked):
        scores.scores(["g6.xlarge"], [f"region-{number}" for number in range(23)])
    assert [sum(name.startswith("RegionName.") for name in form) for form in asked] == [10, 10, 3]


@pytest.mark.parametrize("code", ["AuthFailure", "InvalidClientTokenId", "ExpiredToken"])
def test_keys_that_aws_does_not_take_are_refused(code: str) -> None:
    """Nothing could be rented with them either; the refusal says what to do."""
    with ec2({"": refusal(code)}) as (scores, _), pytest.raises(Refused, match=f"{code}.*sky check aws"):
        scores.scores(["g6.xlarge"], ["us-east-1"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("UnauthorizedOperation", "allow ec2:GetSpotPlacementScores"),
        ("MaxConfigLimitExceeded", "today"),
        ("InternalError", "InternalError"),
    ],
)
def test_scores_that_are_not_to_be_had_are_unavailable(code: str, words: str) -> None:
    """Machines may still be rented, so this is no refusal; the words say why there is no score."""
    with ec2({"": refusal(code)}) as (scores, _), pytest.raises(Unavailable, match=words):
        scores.scores(["g6.xlarge"], ["us-east-1"])


def test_nobody_there_is_unavailable() -> None:
    """An endpoint that cannot be reached is no refusal."""
    scores = SpotPlacementScores(endpoint_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="not reached"):
        scores.scores(["g6.xlarge"], ["us-east-1"])


def offer(instance: str, region: str = "us-east-1", accelerators: int = 1) -> Offer:
    return Offer(f"aws/{region}", "L4", accelerators, 24, 16, use_spot=True, dollars_per_hour=0.3, instance=instance)


def test_machines_of_one_kind_are_one_question() -> None:
    """AWS counts how many different ones it is asked in a day; a region that it leaves out has no answer."""
    offers = [offer("b"), offer("a", "us-west-2"), offer("a", "eu-west-1"), offer("c", accelerators=8)]
    with ec2({"": page({"us-east-1": 9, "us-west-2": 1})}) as (source, asked):
        said = source.ask(offers)
    scores = {one: answer.score for one, answer in said.items() if isinstance(answer, Score)}
    assert scores == {offers[0]: 9, offers[1]: 1, offers[3]: 9}
    kinds = [sorted(value for name, value in form.items() if name.startswith("InstanceType.")) for form in asked]
    assert sorted(kinds) == [["a", "b"], ["c"]]


def test_a_question_without_an_answer_is_told_of_its_offers_alone() -> None:
    """The offer's own error says why; keys that AWS does not take are an error of all."""
    with ec2({"": refusal("UnauthorizedOperation")}) as (source, _):
        said = source.ask([offer("a")])
    assert isinstance(said[offer("a")], Unavailable)
    with ec2({"": refusal("AuthFailure")}) as (source, _), pytest.raises(Refused, match="sky check aws"):
        source.ask([offer("a")])
