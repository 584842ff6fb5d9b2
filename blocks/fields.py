"""Fields of blocks that hold secrets and addresses: what would leak, or break a request, is refused where it is typed.

It is Refused and no ValueError: pydantic would show the value, and among several kinds of stores try the next one, so
that an S3 store with a wrong key became one of Google's. For whatever else is wrong, blocks set `hide_input_in_errors`.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from prefect.blocks.core import Block
from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationInfo, model_validator

from blocks.cleaning import mask_from_now_on
from blocks.errors import Refused

_VISIBLE = re.compile(r"[!-~]*")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_OF_AN_ACCOUNT = ("client_email", "private_key", "token_uri")


def _refused(info: ValidationInfo, why: str) -> Refused:
    return Refused(f"the block's {info.field_name} {why}")


def _one_word(secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    if secret is not None:
        word = secret.get_secret_value()
        if not _VISIBLE.fullmatch(word):
            raise _refused(
                info,
                "holds a line break, a blank or another character that no token and no key has; "
                "copy it again, without what stands before and after it",
            )
        mask_from_now_on(word)
    return secret


def _visible(word: str | None, info: ValidationInfo) -> str | None:
    if word is not None and not _VISIBLE.fullmatch(word):
        raise _refused(
            info, "holds a line break, a blank or another character that no name of a key has; copy it again"
        )
    return word


def _private_key(secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    if secret is not None and not _PRIVATE_KEY.search(secret.get_secret_value()):
        raise _refused(
            info, "is no private key in PEM, which begins with -----BEGIN PRIVATE KEY-----; copy the whole file"
        )
    if secret is not None:
        mask_from_now_on(secret.get_secret_value())
    return secret


def _account(secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    if not secret:
        return secret
    try:
        known = json.loads(secret.get_secret_value())
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, Mapping) or not all(isinstance(known.get(name), str) for name in _OF_AN_ACCOUNT):
        raise _refused(
            info, f"is no JSON key of a service account, which has {', '.join(_OF_AN_ACCOUNT)}; copy the whole file"
        )
    mask_from_now_on(str(known["private_key"]))
    return secret


def _endpoint(url: str | None, info: ValidationInfo) -> str | None:
    """Its words hold nothing of the address, which may be a password."""
    if url is None:
        return None
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        raise _refused(info, "holds a line break, a blank or another character that no address has; write it again")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _refused(info, "is no address; write it as https://host or https://host:port") from None
    if parts.scheme not in ("http", "https") or not host:
        raise _refused(info, "is no address; write it with http:// or https:// before the host")
    return _shown(url, info)


def _shown(url: str, info: ValidationInfo) -> str:
    parts = urlsplit(url if "//" in url else f"//{url}")
    if "@" in parts.netloc:
        raise _refused(
            info,
            "holds a user or a password, which would stand in errors and manifests; write the address without them, "
            "and give the secret in the field for it",
        )
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise _refused(
            info,
            "goes on after ? or #, where a signature would stand in errors; write the address without that, "
            "and give the secret in the field for it",
        )
    return url


def _bare_endpoint(url: str, info: ValidationInfo) -> str:
    if url.endswith("/"):
        raise _refused(info, "ends with a slash; write it without")
    return url


Secret = Annotated[SecretStr | None, AfterValidator(_one_word)]
"""A token or a key that is sent as one word."""
KeyId = Annotated[str | None, AfterValidator(_visible)]
"""What names a key, and is no secret itself."""
PrivateKey = Annotated[SecretStr | None, AfterValidator(_private_key)]
ServiceAccount = Annotated[SecretStr | None, AfterValidator(_account)]
ShownAddress = Annotated[str, AfterValidator(_shown)]
"""One that nobody is sent to, and that reports show."""
Endpoint = Annotated[str | None, AfterValidator(_endpoint)]
"""The address of a server, which errors and manifests may name."""
BareEndpoint = Annotated[
    str,
    AfterValidator(_endpoint),
    AfterValidator(_bare_endpoint),
    Field(json_schema_extra={"pattern": r"^https?://[^\s@?#]*[^\s@?#/]$"}),  # for forms, which show what they refuse
]
"""One that paths are put behind."""
Near = Annotated[
    tuple[str, ...],
    Field(
        title="Near",
        description="Cells whose machines read weights from here if they can, as aws/us-east-1, gcp or slurm/alpha.",
    ),
]
"""Of a store."""


class OfItsKind(BaseModel):
    """A block that one field may hold in place of others: what is another kind's is refused, so that the next is tried.

    Of a union of blocks pydantic takes the first that fits, and Prefect's blocks take fields that they do not know, so
    that a saved one fits every block whose required fields it has; where it is a document of its own, Prefect says
    nothing of its kind.
    """

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_kind(cls, given: object) -> object:
        """A ValueError where it says that it is another, or has fields that this one has not."""
        if isinstance(given, Mapping) and issubclass(cls, Block):
            slug = cls.get_block_type_slug()
            if (told := given.get("block_type_slug", slug)) != slug:
                raise ValueError(f"this is a block of type {told!r}, not {slug!r}")
            known = {*cls.model_fields, "block_type_slug"}
            if unknown := sorted(str(name) for name in given if name not in known and not str(name).startswith("_")):
                raise ValueError(f"{slug!r} has no fields {', '.join(unknown)}")
        return given
