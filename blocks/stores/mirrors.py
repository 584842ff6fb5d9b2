"""What a mirror is: where it lies in a store, and the manifest that alone says that it is there.

Stores, hubs and manifests are read by these rules and no others, whoever wrote what they say.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from blocks.errors import Refused
from blocks.on_machine.node import LARGEST_FILE_BYTES, SHA256, fault_of_path, fault_of_paths
from blocks.ports.hub import ModelFile
from blocks.ports.store import MANIFEST, Store, StoredObject

MIRRORS = "models/"
"""The prefix of all mirrors in a store."""
LONGEST_KEY_BYTES = 1024
"""What Amazon S3, Google and Azure take: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html."""
HOME = re.compile(rf"{MIRRORS}[\w.-]+/[\w.-]+/[^/]+/")


def mirror_prefix(repo: str, commit: str) -> str:
    """`models/<maker>/<name>/<commit>/`; Refused where these are no names of folders."""
    place = f"{repo}/{commit}"
    fault = fault_of_path(place)
    if fault is not None or HOME.fullmatch(f"{MIRRORS}{place}/") is None:
        raise Refused(
            f"{repo!r} at {commit!r} names no place for a mirror: it {fault or 'is not <maker>/<name> at a commit'}; "
            f"correct the name, or ask the hub's owner"
        )
    return f"{MIRRORS}{place}/"


def home_of(key: str) -> str | None:
    """The prefix of the mirror that an object belongs to; None where it belongs to none."""
    found = HOME.match(key)
    return None if found is None or fault_of_path(key) is not None else found[0]


def is_manifest(key: str) -> bool:
    """Only what lies where Skyferry alone writes: a file of that name deeper down is the model's own."""
    home = home_of(key)
    return home is not None and key == home + MANIFEST


def fault_of_name(path: str) -> str | None:
    """Why no file of a model can be called so; None where it can."""
    if (fault := fault_of_path(path)) is not None:
        return fault
    if MANIFEST in path.split("/"):
        return f"has the name of a mirror's manifest, {MANIFEST}"
    return None


def _sound(path: str) -> str:
    if (fault := fault_of_name(path)) is not None:
        raise ValueError(f"{path!r} {fault}")
    return path


class MirroredFile(BaseModel, frozen=True):
    path: Annotated[str, AfterValidator(_sound)]
    size_bytes: int = Field(ge=0, le=LARGEST_FILE_BYTES)
    sha256: str = Field(pattern=SHA256)


class Manifest(BaseModel):
    """What a mirror holds; written last, it is the only sign that the mirror exists."""

    model_config = ConfigDict(frozen=True)

    repo: str
    commit: str
    license: str | None
    files: tuple[MirroredFile, ...]
    source: str
    mirrored_at: datetime
    tool: str

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (fault := fault_of_paths(file.path for file in self.files)) is not None:
            raise ValueError(fault)
        return self

    @property
    def prefix(self) -> str:
        return mirror_prefix(self.repo, self.commit)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def holds(self, files: Iterable[ModelFile]) -> bool:
        """Is everything of this there?"""
        paths = {file.path for file in self.files}
        return all(file.path in paths for file in files)

    def lost_in(self, objects: Iterable[StoredObject]) -> frozenset[str]:
        """The paths at which a store does not list what this names, or not in its size."""
        sizes = {stored.key: stored.size_bytes for stored in objects}
        return frozenset(file.path for file in self.files if sizes.get(self.prefix + file.path) != file.size_bytes)

    def check_against(self, files: Iterable[ModelFile]) -> None:
        """Refused where the hub says otherwise of a file than when it was mirrored: one of both is wrong."""
        ours = {file.path: file for file in self.files}
        differ = [
            file.path
            for file in files
            if (mirrored := ours.get(file.path)) is not None
            and (mirrored.size_bytes != file.size_bytes or file.sha256 not in (None, mirrored.sha256))
        ]
        if differ:
            raise Refused(
                f"the manifest of {self.repo} at {self.commit} says otherwise than the hub of {', '.join(differ)}; "
                f"ask the hub's owner, and to begin anew delete that mirror"
            )

    def joined_with(self, standing: "Manifest") -> "Manifest":
        """Both, where a mirror is made larger by files that an earlier run left out; Refused where they differ."""
        ours = {file.path: file for file in self.files}
        theirs = {file.path: file for file in standing.files}
        if differ := sorted(path for path in ours.keys() & theirs.keys() if ours[path] != theirs[path]):
            raise Refused(
                f"a manifest of {standing.repo} at {standing.commit} stands already and says otherwise of "
                f"{', '.join(differ)}; delete that mirror first"
            )
        return self.model_copy(update={"files": tuple(file for _, file in sorted({**theirs, **ours}.items()))})


def manifest_in(body: bytes, prefix: str, url: str) -> Manifest:
    """What the object at that address says of the mirror below that prefix; Refused where it is no manifest of it."""
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(
            f"{url} is no manifest ({where + ': ' if where else ''}{first['msg']}); "
            f"delete it, and mirror the model again"
        ) from None
    if manifest.prefix != prefix:
        raise Refused(
            f"{url} is a manifest of {manifest.repo} at {manifest.commit}, which is not the mirror that it lies in; "
            f"delete it, and mirror the model again"
        )
    return manifest


def manifest_of(store: Store, prefix: str) -> Manifest | None:
    """None where there is none, and so no mirror; Refused where it is no manifest of that place."""
    found = store.get(prefix + MANIFEST)
    return None if found is None else manifest_in(found.body, prefix, store.url_of(prefix + MANIFEST))


def files_of(store: Store, prefix: str) -> tuple[MirroredFile, ...]:
    """Every file of a mirror that has to be there; Refused where its manifest is not, or is none."""
    if (manifest := manifest_of(store, prefix)) is None:
        url = store.url_of(prefix + MANIFEST)
        raise Refused(f"{url} is not there, so there is no whole mirror; mirror the model first")
    return manifest.files
