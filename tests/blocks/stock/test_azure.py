"""Azure's Spot Placement Scores, over real HTTPS against a server that answers as Azure documents it."""

import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import trustme
from azure.core.credentials import AccessToken
from azure.identity import CredentialUnavailableError

from blocks.errors import NoCapacity, Refused, SkyferryError, Unavailable
from blocks.local.processes import free_port
from blocks.ports.market import Offer
from blocks.stock.azure import LIKELIHOOD, SpotPlacementScores
from blocks.stock.source import Forecast
from tests.loopback import Answer, Asked, answering

A100 = "Standard_NC24ads_A100_v4"


class Identity:
    """A credential whose token anybody would take for one."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        assert scopes == ("https://management.azure.com/.default",)
        return AccessToken("token", 4_000_000_000)


class Nobody:
    """What is left where neither environment nor command line has credentials."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        raise CredentialUnavailableError(message="run 'az login'")


@pytest.fixture(name="tls", scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Azure's library sends a token over TLS alone."""
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    path = tmp_path_factory.mktemp("azure") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return context, path


@pytest.fixture(autouse=True)
def somebodys_subscription(monkeypatch: pytest.MonkeyPatch, tls: tuple[ssl.SSLContext, Path]) -> None:
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", "sub-1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[1]))


Azure = Callable[..., AbstractContextManager[tuple[SpotPlacementScores, list[Asked]]]]


@pytest.fixture(name="azure")
def azure_on_loopback(tls: tuple[ssl.SSLContext, Path]) -> Azure:
    @contextmanager
    def azure(answer: Callable[[Asked], Answer], **more: Any) -> Iterator[tuple[SpotPlacementScores, list[Asked]]]:
        with answering(answer, tls[0]) as (url, asked):
            yield SpotPlacementScores(endpoint_url=url, credential=Identity, **more), asked

    return azure


def spot(instance: str = A100, region: str = "eastus") -> Offer:
    return Offer(f"azure/{region}", "A100-80GB", 1, 80, 220, use_spot=True, dollars_per_hour=1.3, instance=instance)


def score(value: str, instance: str = A100, region: str = "eastus", **more: Any) -> dict[str, Any]:
    return {"sku": instance, "region": region, "availabilityZone": None, "score": value} | more


def scores(*found: dict[str, Any]) -> Callable[[Asked], Answer]:
    return lambda _: (200, {"desiredCount": 1, "placementScores": found})


def every(asked: Asked) -> Answer:
    """High, for each pair that is asked."""
    sizes, regions = asked.json["desiredSizes"], asked.json["desiredLocations"]
    return 200, {"placementScores": [score("High", size["sku"], region) for size in sizes for region in regions]}


def refusal(status: int, code: str) -> Callable[[Asked], Answer]:
    return lambda _: (status, {"error": {"code": code, "message": "no"}})


def test_the_question_says_what_is_wanted(azure: Azure) -> None:
    """Sizes, regions and how many, without zones, of the API's stable version, with a token."""
    with azure(scores(score("High"))) as (source, asked):
        source.ask([spot(), spot(region="westeurope")])
    (question,) = asked
    assert question.path == (
        "/subscriptions/sub-1/providers/Microsoft.Compute/locations/eastus/placementScores/spot/generate"
        "?api-version=2025-06-05"
    )
    assert question.headers["authorization"] == "Bearer token"
    assert question.json == {
        "desiredLocations": ["eastus", "westeurope"],
        "desiredSizes": [{"sku": A100}],
        "desiredCount": 1,
        "availabilityZones": False,
    }


@pytest.mark.parametrize(("value", "answer"), [("High", "free"), ("Medium", "free"), ("Low", "none")])
def test_a_score_is_a_forecast(azure: Azure, value: str, answer: str) -> None:
    """Azure's three words are three likelihoods, whatever case it writes names in."""
    with azure(scores(score(value, A100.upper(), "EastUS", isQuotaAvailable=True))) as (source, _):
        forecast = source.ask([spot()])[spot()]
    assert isinstance(forecast, Forecast)
    assert (forecast.likelihood, forecast.stock(5).answer) == (LIKELIHOOD[value], answer)
    assert f"spot placement score {value}" in forecast.words


@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        (score("RestrictedSkuNotAvailable", isQuotaAvailable=False), Refused, f"rents this subscription no {A100}"),
        (score("High", isQuotaAvailable=False), NoCapacity, "azure/eastus said no: the quota .* no room"),
        (score("DataNotFoundOrStale", isQuotaAvailable=True), Unavailable, "no fresh data"),
        (score("Splendid"), Unavailable, "as Splendid"),
    ],
)
def test_what_is_no_score_says_why(azure: Azure, told: dict[str, Any], error: type[SkyferryError], words: str) -> None:
    """Never rented to us, no room in our quota, and not known are three different answers."""
    with azure(scores(told)) as (source, _):
        found = source.ask([spot()])[spot()]
    assert isinstance(found, error)
    with pytest.raises(error, match=words):
        raise found


def test_a_size_that_azure_leaves_out_has_no_forecast(azure: Azure) -> None:
    """Nothing is made up for it, and the others keep theirs."""
    with azure(scores(score("High"))) as (source, _):
        assert list(source.ask([spot(), spot("Standard_ND_unknown")])) == [spot()]


def test_many_are_asked_five_sizes_and_eight_regions_at_a_time(azure: Azure) -> None:
    """Azure answers for no more, so more are more questions; none is lost."""
    offers = [spot(f"Standard_{size}", f"region{region}") for size in range(7) for region in range(9)]
    with azure(every) as (source, asked):
        found = source.ask(offers)
    assert set(found) == set(offers)
    sizes = [(len(one.json["desiredSizes"]), len(one.json["desiredLocations"])) for one in asked]
    assert sizes == [(5, 8), (5, 1), (2, 8), (2, 1)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(400, "InvalidParameter"), "400 InvalidParameter: no"),
        (refusal(429, "TooManyRequests"), "ask again later"),
        (refusal(500, "InternalServerError"), "500 InternalServerError"),
        (lambda _: (502, b"<html>gone</html>"), "502 <html>gone</html>"),
        (lambda _: (200, b"<html>hello</html>"), "no list of placement scores"),
        (lambda _: (200, {"scores": []}), "no list of placement scores"),
        (lambda _: (200, {"placementScores": [{"sku": A100}]}), "no list of placement scores"),
    ],
)
def test_a_question_without_an_answer_leaves_the_others_theirs(
    azure: Azure, answer: Callable[[Asked], Answer], words: str
) -> None:
    """Bad parameters, throttling, breakdowns and what is no JSON make the offers of that one question unknown."""
    offers = [spot(f"Standard_{size}") for size in range(6)]
    with azure(lambda asked: answer(asked) if len(asked.json["desiredSizes"]) == 1 else every(asked)) as (source, _):
        found = source.ask(offers)
    assert all(isinstance(found[offer], Forecast) for offer in offers[:5])
    last = found[offers[5]]
    assert isinstance(last, Unavailable)
    assert words in str(last)


def test_one_slow_answer_leaves_the_others_theirs(azure: Azure) -> None:
    """It is waited for so long, and no longer."""
    offers = [spot(f"Standard_{size}") for size in range(6)]
    over = Event()

    def answer(asked: Asked) -> Answer:
        if len(asked.json["desiredSizes"]) == 1:
            over.wait()
        return every(asked)

    with azure(answer, seconds=1) as (source, _):
        found = source.ask(offers)
        over.set()
    assert isinstance(found[offers[0]], Forecast)
    assert isinstance(found[offers[5]], Unavailable)


def test_a_token_that_azure_does_not_take_is_refused(azure: Azure) -> None:
    """Nothing could be rented with it either; the refusal says what to do."""
    with azure(refusal(401, "InvalidAuthenticationToken")) as (source, _), pytest.raises(Refused, match="sky check"):
        source.ask([spot()])


def test_no_credentials_are_refused(azure: Azure) -> None:
    """Before Azure is asked anything."""
    with azure(every) as (_, asked):
        with pytest.raises(Refused, match="az login"):
            SpotPlacementScores(endpoint_url="https://127.0.0.1:1", credential=Nobody).ask([spot()])
        assert asked == []


def test_scores_that_are_kept_from_us_are_unavailable(azure: Azure) -> None:
    """Machines may still be rented, so this is no refusal; one answer is enough to know it."""
    offers = [spot(f"Standard_{size}") for size in range(6)]
    with azure(refusal(403, "AuthorizationFailed")) as (source, asked):
        with pytest.raises(Unavailable, match="Compute Recommendations Role"):
            source.ask(offers)
        assert len(asked) == 1


def test_no_subscription_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words name the variable that says it."""
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID")
    with pytest.raises(Unavailable, match="set AZURE_SUBSCRIPTION_ID"):
        SpotPlacementScores(credential=Identity).ask([spot()])


def test_nobody_there_is_unavailable() -> None:
    """An endpoint that cannot be reached is no refusal."""
    source = SpotPlacementScores(endpoint_url=f"https://127.0.0.1:{free_port()}", credential=Identity)
    with pytest.raises(Unavailable, match="not reached"):
        source.ask([spot()])


def test_without_its_library_azure_is_not_asked() -> None:
    """The market is there all the same, and says what to install."""
    script = (
        "import sys; sys.modules['azure'] = None\n"
        "from blocks.errors import Unavailable\n"
        "from blocks.stock.sources import AzureWhereInstalled\n"
        "try: AzureWhereInstalled().ask([])\n"
        "except Unavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "install skyferry[azure]" in done.stdout
