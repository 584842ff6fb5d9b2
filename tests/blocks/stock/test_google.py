"""Compute Engine's capacity advice, over real HTTP against a server that answers as Google documents it."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from blocks.errors import Refused, Unavailable
from blocks.local.processes import free_port
from blocks.ports.market import Offer
from blocks.stock.google import CapacityAdvice
from blocks.stock.source import Forecast
from tests.loopback import Answer, Asked, answering

PRIVATE_KEY = (
    rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
)
TOKEN: Answer = (200, {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"})

Google = Callable[..., AbstractContextManager[tuple[CapacityAdvice, list[Asked]]]]


@pytest.fixture(name="google")
def google_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Google:
    """Advice, and the tokens for it, from one server; the credentials are where Google's library looks for them."""

    @contextmanager
    def google(
        answer: Callable[[Asked], Answer], token: Answer = TOKEN, project: str | None = "models", **more: Any
    ) -> Iterator[tuple[CapacityAdvice, list[Asked]]]:
        with answering(lambda asked: token if asked.path == "/token" else answer(asked)) as (url, asked):
            account = {
                "type": "service_account",
                "client_email": "skyferry@models.iam.gserviceaccount.com",
                "private_key": PRIVATE_KEY,
                "token_uri": f"{url}/token",
            }
            key = tmp_path / "key.json"
            key.write_text(json.dumps(account | ({"project_id": project} if project else {})))
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
            yield CapacityAdvice(endpoint_url=f"{url}/compute/beta", **more), asked

    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    return google


def spot(instance: str = "g2-standard-4", cell: str = "gcp/us-central1", accelerators: int = 1) -> Offer:
    kind = "L4" if accelerators else "CPU"
    return Offer(cell, kind, accelerators, 24, 16, use_spot=True, dollars_per_hour=0.3, instance=instance)


def advice(**scores: Any) -> Callable[[Asked], Answer]:
    shard = {"instanceCount": 3, "machineType": "g2-standard-4", "provisioningModel": "SPOT", "zone": "us-central1-a"}
    return lambda _: (200, {"recommendations": [{"scores": scores, "shards": [shard]}]})


def refusal(status: int, message: str = "no", reason: str = "") -> Callable[[Asked], Answer]:
    return lambda _: (status, {"error": {"code": status, "message": message, "errors": [{"reason": reason}]}})


def machine_of(asked: Asked) -> str:
    return asked.json["instanceFlexibilityPolicy"]["instanceSelections"]["asked"]["machineTypes"][0]


def advised(asked: list[Asked]) -> list[Asked]:
    return [one for one in asked if one.path != "/token"]


def test_the_question_says_what_is_wanted(google: Google) -> None:
    """Machines on spot, how many, and the zone where the offer has one, in our project's name."""
    with google(advice(obtainability=0.9)) as (source, asked):
        source.ask([spot(), spot(cell="gcp/us-central1/us-central1-b")])
    anywhere, there = sorted(advised(asked), key=lambda one: len(one.body))
    assert anywhere.path == there.path == "/compute/beta/projects/models/regions/us-central1/advice/capacity"
    assert anywhere.headers["authorization"] == "Bearer token"
    assert anywhere.json == {
        "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
        "instanceFlexibilityPolicy": {"instanceSelections": {"asked": {"machineTypes": ["g2-standard-4"]}}},
        "distributionPolicy": {"targetShape": "ANY"},
        "size": 1,
    }
    assert there.json["distributionPolicy"] == {"targetShape": "ANY", "zones": [{"zone": "zones/us-central1-b"}]}


@pytest.mark.parametrize(("obtainability", "answer"), [(1.0, "free"), (0.5, "free"), (0.4, "none"), (0.0, "none")])
def test_an_obtainability_is_a_forecast(google: Google, obtainability: float, answer: str) -> None:
    """It is a likelihood as it stands, 0 too; how long machines stay is told with it."""
    with google(advice(obtainability=obtainability, estimatedUptime="600s")) as (source, _):
        forecast = source.ask([spot()])[spot()]
    assert isinstance(forecast, Forecast)
    assert (forecast.likelihood, forecast.stock(5).answer) == (obtainability, answer)
    assert "most stay for 600s" in forecast.words


def test_each_machine_is_a_question(google: Google) -> None:
    """Of several Google says one thing for all of them, so many are asked one by one, and the same one once."""
    offers = [spot(f"g2-standard-{size}") for size in range(20)]
    with google(advice(obtainability=0.9)) as (source, asked):
        assert set(source.ask([*offers, *offers])) == set(offers)
    assert sorted(map(machine_of, advised(asked))) == sorted(str(offer.instance) for offer in offers)
    assert len(asked) == len(offers) + 1, "the token is fetched once"


def test_added_accelerators_are_not_asked_for(google: Google) -> None:
    """The score of an N1 machine is that of the machine alone."""
    n1, alone = spot("n1-standard-8"), spot("n1-standard-8", accelerators=0)
    with google(advice(obtainability=0.9)) as (source, asked):
        found = source.ask([n1, alone])
    assert isinstance(found[n1], Unavailable)
    assert isinstance(found[alone], Forecast)
    assert len(advised(asked)) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(400, "Invalid machine type"), "g2-standard-8 in gcp/us-central1: 400 Invalid machine type"),
        (refusal(404, "not found"), "404 not found"),
        (refusal(403, "Quota exceeded", "rateLimitExceeded"), "ask again later"),
        (refusal(429), "ask again later"),
        (refusal(503, "backend"), "503 backend"),
        (lambda _: (502, b"<html>gone</html>"), "502 <html>gone</html>"),
        (lambda _: (200, b"<html>hello</html>"), "is no advice"),
        (lambda _: (200, {"recommendations": [{"scores": {"obtainability": 1.4}}]}), "is no advice"),
        (lambda _: (200, {"recommendations": []}), "gives no advice on g2-standard-8"),
        (lambda _: (200, {"recommendations": [{}]}), "gives no advice on g2-standard-8"),
    ],
)
def test_a_question_without_an_answer_leaves_the_others_theirs(
    google: Google, answer: Callable[[Asked], Answer], words: str
) -> None:
    """Unknown machines, throttling, breakdowns and what is no JSON make that one machine unknown."""
    good, bad = spot("g2-standard-4"), spot("g2-standard-8")
    fine = advice(obtainability=0.9)
    with google(lambda asked: answer(asked) if machine_of(asked) == bad.instance else fine(asked)) as (source, _):
        found = source.ask([good, bad])
    assert isinstance(found[good], Forecast)
    assert isinstance(found[bad], Unavailable)
    assert words in str(found[bad])


def test_one_slow_answer_leaves_the_others_theirs(google: Google) -> None:
    """It is waited for so long, and no longer."""
    good, bad = spot("g2-standard-4"), spot("g2-standard-8")
    over = Event()

    def answer(asked: Asked) -> Answer:
        if machine_of(asked) == bad.instance:
            over.wait()
        return advice(obtainability=0.9)(asked)

    with google(answer, seconds=1) as (source, _):
        found = source.ask([good, bad])
        over.set()
    assert isinstance(found[good], Forecast)
    assert isinstance(found[bad], Unavailable)


def test_a_key_that_google_does_not_take_is_refused(google: Google) -> None:
    """Nothing could be rented with it either; the refusal says what to do."""
    no = (400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
    with google(advice(obtainability=0.9), token=no) as (source, asked):
        with pytest.raises(Refused, match=r"invalid_grant.*sky check gcp"):
            source.ask([spot()])
        assert advised(asked) == []


def test_a_token_that_google_does_not_take_is_refused(google: Google) -> None:
    """The same where the token was given and is not honoured."""
    with google(refusal(401, "Request had invalid credentials")) as (source, _), pytest.raises(Refused, match="inval"):
        source.ask([spot()])


def test_no_credentials_are_refused(google: Google, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before Google is asked anything."""
    with google(advice(obtainability=0.9)) as (source, asked):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
        with pytest.raises(Refused, match="gcloud auth"):
            source.ask([spot()])
        assert asked == []


def test_advice_that_is_kept_from_us_is_unavailable(google: Google) -> None:
    """Machines may still be rented, so this is no refusal; not all are asked to learn it."""
    offers = [spot(f"g2-standard-{size}") for size in range(100)]
    with google(refusal(403, "Required 'compute.advice.capacity' permission", "forbidden")) as (source, asked):
        with pytest.raises(Unavailable, match=r"allow compute\.advice\.capacity"):
            source.ask(offers)
        assert len(asked) < len(offers)


def test_no_project_is_unavailable(google: Google, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The words name the variable that says it."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    nameless = google(advice(obtainability=0.9), project=None)
    with nameless as (source, _), pytest.raises(Unavailable, match="set GOOGLE_CLOUD_PROJECT"):
        source.ask([spot()])


def test_nobody_there_is_unavailable(google: Google) -> None:
    """An endpoint that cannot be reached is no refusal."""
    with google(advice(obtainability=0.9)), pytest.raises(Unavailable, match="not reached"):
        CapacityAdvice(endpoint_url=f"http://127.0.0.1:{free_port()}").ask([spot()])
