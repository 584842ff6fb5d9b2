"""A hub, where models come from: what Skyferry asks of it, and the frozen values that cross."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ModelFile:
    """One file of a model, with the hashes that the hub vouches for."""

    path: str
    size_bytes: int
    sha256: str | None
    """Of the content, for files in large-file storage; None for small ones, which have only `git_sha1`."""
    git_sha1: str
    """Of git's blob: sha1 over `blob <size>\\0` and the content, which for large-file storage is a pointer's."""


@dataclass(frozen=True)
class Model:
    """A repository pinned to a commit, and all its files."""

    repo: str
    commit: str
    files: tuple[ModelFile, ...]
    license: str | None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Hub(Protocol):
    """A place that speaks the Hugging Face Hub's protocol."""

    @property
    def endpoint(self) -> str:
        """Its address, which goes into the manifests of what came from it."""
        ...

    def look_up(self, repo: str, revision: str) -> Model:
        """Pin a branch, tag or commit to its commit; Refused where it does not exist or may not be read."""
        ...

    def read(self, model: Model, file: ModelFile) -> Iterator[bytes]:
        """The file's bytes as the hub sends them, unchecked."""
        ...

    def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the file's bytes from `start` on, unchecked; Unavailable where fewer come.

        Unsupported where the hub gives whole files only, which `read` brings.
        """
        ...
