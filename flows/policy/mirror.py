"""What is a whole mirror, and which files of it are missing?"""

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from blocks.ports import Model, ModelFile, StoredObject


class MirroredFile(BaseModel):
    model_config = ConfigDict(frozen=True)

    path: str
    size_bytes: int
    sha256: str


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

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def what_to_copy(model: Model, there: Iterable[StoredObject], prefix: str) -> tuple[ModelFile, ...]:
    """The files that are not in the store yet, largest first.

    An object exists only once its hash was right, so a large file of the right size is there. Small files come again:
    only reading them gives the sha256 that the manifest needs.
    """
    sizes = {stored.key: stored.size_bytes for stored in there}
    missing = [file for file in model.files if file.sha256 is None or sizes.get(prefix + file.path) != file.size_bytes]
    return tuple(sorted(missing, key=lambda file: -file.size_bytes))
