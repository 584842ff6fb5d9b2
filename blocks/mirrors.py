"""What a fleet needs to know of a mirror."""

from pydantic import BaseModel, ValidationError

from blocks.errors import Refused
from blocks.ports import MANIFEST, Store


class MirroredFile(BaseModel, frozen=True):
    path: str
    size_bytes: int
    sha256: str


class _Manifest(BaseModel):
    files: tuple[MirroredFile, ...]


def files_of(store: Store, mirror_prefix: str) -> tuple[MirroredFile, ...]:
    """Every file of the mirror; Refused where its manifest is not there, or is none."""
    key = mirror_prefix + MANIFEST
    if (found := store.get(key)) is None:
        raise Refused(f"{store.url_of(key)} is not there, so there is no whole mirror; mirror the model first")
    try:
        return _Manifest.model_validate_json(found.body).files
    except ValidationError as error:
        raise Refused(f"{store.url_of(key)} is no manifest ({error}); mirror the model again") from error
