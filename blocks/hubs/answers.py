"""What a hub says of a model, checked before anything of it becomes a commit, a path, a size or a hash.

Each check raises NotBelievedError, in words that go on after "it".
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blocks.cleaning import cleaned
from blocks.ports.hub import ModelFile
from blocks.ports.store import MANIFEST

MOST_FILES = 100_000
MOST_BYTES = 1 << 50
LONGEST_PATH_BYTES = 780
"""With the mirror's prefix before it, within the 1,024 bytes that stores take as a key."""
LONGEST_NAME_BYTES = 255
LONGEST_LICENSE = 200

_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control characters, those that turn or hide others, halves of characters, and ends of lines."""
_NO_FILES = {"directory", "tree", "commit", "submodule"}


class NotBelievedError(ValueError):
    """What is said cannot be so, or could do harm."""


@dataclass(frozen=True)
class Description:
    """A model without its files."""

    commit: str
    license: str | None
    is_gated: bool
    named: frozenset[str]
    """Paths; not all of them, where there are many."""


@dataclass(frozen=True)
class Listing:
    """A page of what a model holds."""

    files: tuple[ModelFile, ...]
    folders: frozenset[str]


def check_asked(repo: str, revision: str) -> None:
    """What becomes part of an address and of keys; NotBelievedError goes on after the name of both."""
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise NotBelievedError("is no name of a model; write it as maker/model")
    if not revision or ".." in revision or " " in revision or _has_invisible(revision):
        raise NotBelievedError("is no name of a revision; give a branch, a tag or a commit")


def description(said: object, revision: str) -> Description:
    """Of `/api/models/…/revision/…`."""
    if not isinstance(said, Mapping):
        raise NotBelievedError("describes the model as something else than a JSON object")
    commit = said.get("sha")
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise NotBelievedError(f"names {_shown(commit)} as the commit, which is no hash of 40 hexadecimal digits")
    if _SHA1.fullmatch(revision.lower()) and commit != revision.lower():
        raise NotBelievedError(f"names the commit {commit} where that very commit was asked for")
    return Description(
        commit=commit,
        license=_license(said.get("tags")),
        is_gated=said.get("gated") not in (None, False),
        named=frozenset(
            sibling["rfilename"]
            for sibling in _sequence(said.get("siblings"))
            if isinstance(sibling, Mapping) and isinstance(sibling.get("rfilename"), str)
        ),
    )


def listing(said: object) -> Listing:
    """Of `/api/models/…/tree/…`."""
    if not isinstance(said, Sequence) or isinstance(said, str):
        raise NotBelievedError("lists the files as something else than a JSON array")
    files, folders = list[ModelFile](), set[str]()
    for entry in said:
        if not isinstance(entry, Mapping):
            raise NotBelievedError(f"lists {_shown(entry)} among the files")
        kind = entry.get("type", "file")
        if kind == "directory":
            folders.add(_path(entry.get("path")))
        elif kind == "file":
            files.append(_file(entry.get("path"), entry.get("size"), entry.get("oid"), entry.get("lfs")))
        elif not isinstance(kind, str) or kind not in _NO_FILES:
            raise NotBelievedError(
                f"lists {_shown(entry.get('path'))} as a {_shown(kind)}, which nobody knows how to mirror"
            )
    return Listing(tuple(files), frozenset(folders))


def siblings(said: object) -> tuple[ModelFile, ...]:
    """Of `/api/models/…?blobs=true`, for hubs without a tree."""
    found = _sequence(said.get("siblings") if isinstance(said, Mapping) else None)
    return tuple(
        _file(entry.get("rfilename"), entry.get("size"), entry.get("blobId"), entry.get("lfs"))
        for entry in found
        if isinstance(entry, Mapping)
    )


def together(files: Iterable[ModelFile]) -> tuple[ModelFile, ...]:
    """One of each path; a name that is both a file and a folder cannot be stored."""
    by_path = dict[str, ModelFile]()
    for file in files:
        if by_path.setdefault(file.path, file) != file:
            raise NotBelievedError(f"lists {file.path} twice, and not alike")
        if len(by_path) > MOST_FILES:
            raise NotBelievedError(f"lists more than {MOST_FILES} files")
    for path in by_path:
        for folder in folders_above(path):
            if folder in by_path:
                raise NotBelievedError(f"lists {folder} as a file and as the folder of {path}")
    return tuple(by_path.values())


def folders_above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _file(path: object, size: object, blob: object, large: object) -> ModelFile:
    path = _path(path)
    if large is not None and not isinstance(large, Mapping):
        raise NotBelievedError(f"describes {path} in large-file storage as {_shown(large)}")
    if large is None:
        return ModelFile(path, _size(path, size), None, _hash(path, _SHA1, blob))
    size = _size(path, large.get("size", size))
    sha256 = _hash(path, _SHA256, large.get("oid") or large.get("sha256"))
    return ModelFile(path, size, sha256, _hash(path, _SHA1, blob) if blob is not None else _pointer_sha1(sha256, size))


def _path(said: object) -> str:
    if not isinstance(said, str) or not said:
        raise NotBelievedError(f"lists a file without a path ({_shown(said)})")
    if _has_invisible(said) or "\\" in said:
        raise NotBelievedError(f"lists {_shown(said)}, a path with characters that no path may have")
    names = said.split("/")
    if any(name in ("", ".", "..") for name in names):
        raise NotBelievedError(f"lists {_shown(said)}, a path that leads out of the model, or to nothing")
    if len(said.encode()) > LONGEST_PATH_BYTES or any(len(name.encode()) > LONGEST_NAME_BYTES for name in names):
        raise NotBelievedError(f"lists {_shown(said)}, a path that is too long for stores")
    if any(name.casefold() == MANIFEST for name in names):
        raise NotBelievedError(f"lists {_shown(said)}, which is the name of a mirror's own manifest")
    return said


def _size(path: str, said: object) -> int:
    if not isinstance(said, int) or isinstance(said, bool) or not 0 <= said <= MOST_BYTES:
        raise NotBelievedError(f"gives {_shown(said)} as the size of {path}, which is no number of bytes")
    return said


def _hash(path: str, form: re.Pattern[str], said: object) -> str:
    found = said.lower().removeprefix("sha256:") if isinstance(said, str) else ""
    if not form.fullmatch(found):
        raise NotBelievedError(f"gives {_shown(said)} as the hash of {path}, by which nobody can check it")
    return found


def _pointer_sha1(sha256: str, size_bytes: int) -> str:
    """Git's hash of the pointer that stands for the file there."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size_bytes}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()


def _license(tags: object) -> str | None:
    names = [
        tag.removeprefix("license:") for tag in _sequence(tags) if isinstance(tag, str) and tag.startswith("license:")
    ]
    return cleaned(", ".join(names), LONGEST_LICENSE) or None


def _sequence(said: object) -> Sequence[object]:
    return said if isinstance(said, list) else ()


def _has_invisible(text: str) -> bool:
    return any(unicodedata.category(character) in _INVISIBLE for character in text)


def _shown(said: object) -> str:
    return cleaned(ascii(said), 100)
