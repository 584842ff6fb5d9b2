"""Every block's secrets and addresses: what would leak or break a request is refused where it is typed, unseen."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect.blocks.core import Block
from pydantic import BaseModel, SecretStr, ValidationError

from blocks.errors import Refused
from blocks.haproxy.gateway import HAProxyGateway
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.fleet import LocalFleet
from blocks.service import Service
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.azure_blob import AzureStore
from blocks.stores.directory import DirectoryStore
from blocks.stores.google_storage import GoogleStore
from blocks.stores.s3 import S3Store

BLOCKS = (
    AzureStore, DirectoryStore, GoogleStore, HAProxyGateway, HuggingFaceHub, LocalFleet, S3Store, Service, SkyPilotFleet
)  # fmt: skip
FIELDS: dict[str, Callable[[Any], object]] = {
    "hub's token": lambda it: HuggingFaceHub(token=it),
    "hub's endpoint": lambda it: HuggingFaceHub(endpoint=it),
    "S3's key": lambda it: S3Store(bucket="b", secret_access_key=it),
    "S3's key id": lambda it: S3Store(bucket="b", access_key_id=it),
    "S3's endpoint": lambda it: S3Store(bucket="b", endpoint_url=it),
    "Google's account": lambda it: GoogleStore(bucket="b", service_account=it),
    "Google's endpoint": lambda it: GoogleStore(bucket="b", endpoint_url=it),
    "Azure's key": lambda it: AzureStore(container="c", account_url="https://a.example", account_key=it),
    "Azure's address": lambda it: AzureStore(container="c", account_url=it),
    "SkyPilot's server": lambda it: SkyPilotFleet(api_server=it),  # pyright: ignore[reportCallIssue] - nor are the others given to a person who mistypes one
    "gateway's key": lambda it: HAProxyGateway(
        admin_address="gateway:8405", client_certificate="c", ca_certificate="c", client_key=it
    ),
    "within a service": lambda it: Service.model_validate({"name": "chat", "hub": {"token": it}}),
    "within a service's store": lambda it: Service.model_validate({"store": {"bucket": "b", "secret_access_key": it}}),
    "within a fleet": lambda it: LocalFleet.model_validate({"store": {"bucket": "b", "secret_access_key": it}}),
}


def has_no(field: str, value: str, *leaks: str) -> None:
    with pytest.raises(Refused, match=r"the block's [a-z_]+ (holds|is|goes|ends)") as refusal:
        FIELDS[field](value)
    for leak in leaks:
        assert leak not in str(refusal.value)
        assert leak not in repr(refusal.value)


@pytest.mark.parametrize(
    "value",
    ["tok-abc123\n", " tok-abc123", "tok-abc123\r\nX-Evil: 1", "tok-abc123\x00", "tok-abc123\u200b", "tok abc123"],
)
@pytest.mark.parametrize("field", [name for name in FIELDS if "endpoint" not in name and "address" not in name])
def test_a_secret_with_a_break_is_refused_unseen(field: str, value: str) -> None:
    """As it is pasted from a page: it would stand in the error of every request, and each would be tried again."""
    has_no(field, value, "abc123")


@pytest.mark.parametrize(
    "value",
    [
        "https://me:pa55word@host.example",
        "https://pa55word@host.example/path",
        "https://me:pa55word@host.example/",
        "https://host.example?sig=pa55word",
        "https://host.example#pa55word",
        "ftp://pa55word.example",
        "https://host.example/pa55word path",
        "https://host.example/pa55word\n",
        "https://[pa55word",
        "https://host.example:pa55word",
        "pa55word",
    ],
)
@pytest.mark.parametrize("field", [name for name in FIELDS if "endpoint" in name or "address" in name])
def test_an_address_with_a_secret_is_refused_unseen(field: str, value: str) -> None:
    """Each error and each manifest would name it."""
    has_no(field, value, "pa55word")


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8080", "https://[::1]:9000/path", "https://minio.example/", "HTTPS://Host.example:443"],
)
def test_other_addresses_stay_as_they_were_typed(address: str) -> None:
    """Blocks that were saved before are read as before."""
    assert S3Store(bucket="b", endpoint_url=address).endpoint_url == address


def test_what_is_empty_is_none() -> None:
    """A form sends what was left empty so."""
    assert not HuggingFaceHub(token=SecretStr("")).token
    assert not GoogleStore(bucket="b", service_account=SecretStr("")).service_account


def test_a_store_with_a_wrong_secret_is_no_other_store() -> None:
    """A service takes several kinds, and a bucket is all that Google's needs: pydantic would go on to that."""
    typed = {"bucket": "b", "endpoint_url": "https://me:pa55word@s3.example"}
    with pytest.raises(Refused, match="endpoint_url holds a user or a password"):
        Service.model_validate({"store": typed, "further_stores": [typed]})


def test_an_address_that_is_only_shown_may_be_short() -> None:
    """As services were saved before; a password in it is refused there too."""
    shown = {name: {} for name in ("hub", "store", "fleet", "gateway")}
    with pytest.raises(Refused, match="endpoint holds a user"):
        Service.model_validate({**shown, "name": "chat", "endpoint": "me:pa55word@gateway:8000/v1"})
    with pytest.raises(ValidationError) as others:
        Service.model_validate({**shown, "name": "chat", "endpoint": "gateway:8000/v1"})
    assert "endpoint" not in {error["loc"][0] for error in others.value.errors()}


def test_a_service_account_is_looked_at_as_a_whole() -> None:
    """Its JSON has line breaks of right; an account of another kind has not what is needed."""
    account = {"client_email": "me@example.org", "private_key": "-----\n", "token_uri": "https://example.org"}
    GoogleStore(bucket="b", service_account=SecretStr(json.dumps(account, indent=1)))
    for wrong in ("{}", "[]", "[" * 10_000, json.dumps({**account, "private_key": 1})):
        has_no("Google's account", wrong)


def secrets_of(block: type[BaseModel]) -> Iterator[str]:
    yield from (name for name, field in block.model_fields.items() if "SecretStr" in str(field.annotation))


@pytest.mark.parametrize("block", BLOCKS)
def test_no_block_shows_what_it_refuses(block: type[Block]) -> None:
    """Whatever is wrong, pydantic's words do not hold what was typed; and Prefect knows what to hide."""
    assert block.model_config.get("hide_input_in_errors")
    hidden = block.model_json_schema()["secret_fields"]
    assert set(secrets_of(block)) <= set(hidden)
