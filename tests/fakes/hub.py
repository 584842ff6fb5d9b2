"""A hub in memory that keeps the port's promises, and breaks them when a test asks for it."""

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Mapping

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports.hub import Model, ModelFile

Models = Mapping[str, Mapping[str, Mapping[str, bytes]]]
"""Repository, revision, path, content; a repository's last revision by name is also `main`."""


class FakeHub:
    endpoint = "https://hub.fake"

    def __init__(self, models: Models) -> None:
        self.models = models
        self.failures: deque[SkyferryError] = deque()
        """Each is raised once, by the next look-ups and reads in turn."""
        self.corrupted: set[str] = set()
        """Paths whose last bit is sent flipped."""
        self.cut_short: deque[str] = deque()
        """Paths that once break off in the middle."""
        self._commits: list[tuple[Mapping[str, bytes], str]] = []

    def look_up(self, repo: str, revision: str) -> Model:
        self._fail()
        for name, files in self._revisions(repo).items():
            if revision in (name, self._commit(files)):
                return Model(
                    repo, self._commit(files), tuple(_file(p, body) for p, body in files.items()), _license(files)
                )
        raise Refused(f"the fake hub has no {repo} at {revision}")

    def read(self, model: Model, file: ModelFile) -> Iterator[bytes]:
        self._fail()
        for files in self._revisions(model.repo).values():
            if self._commit(files) == model.commit and file.path in files:
                yield from self._send(file.path, files[file.path])
                return
        raise Refused(f"the fake hub has no {file.path} of {model.repo} at {model.commit}")

    def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
        body = b"".join(self.read(model, file))[start : start + len(buffer)]
        buffer[: len(body)] = body
        if len(body) < len(buffer):
            raise Unavailable(f"the fake hub has {len(body)} of {len(buffer)} bytes of {file.path} from {start}")

    def _commit(self, files: Mapping[str, bytes]) -> str:
        """Computed once: reading large files in parts would hash them all at each part."""
        for known, commit in self._commits:
            if known is files:
                return commit
        self._commits.append((files, _commit(files)))
        return self._commits[-1][1]

    def _revisions(self, repo: str) -> dict[str, Mapping[str, bytes]]:
        revisions = self.models.get(repo)
        if not revisions:
            raise Refused(f"the fake hub has no {repo}")
        return {**revisions, "main": revisions[max(revisions)]}

    def _send(self, path: str, body: bytes) -> Iterator[bytes]:
        if path in self.corrupted:
            body = body[:-1] + bytes([body[-1] ^ 1])
        middle = len(body) // 2
        yield body[:middle]
        if path in self.cut_short:
            self.cut_short.remove(path)
            raise Unavailable(f"the fake hub broke off {path} after {middle} bytes")
        yield body[middle:]

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.popleft()


def _file(path: str, body: bytes) -> ModelFile:
    is_large = path.endswith((".gguf", ".safetensors"))
    sha256 = hashlib.sha256(body).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(body)}\n".encode()
    return ModelFile(path, len(body), sha256 if is_large else None, _git_sha1(pointer if is_large else body))


def _git_sha1(blob: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(blob) + blob, usedforsecurity=False).hexdigest()


def _commit(files: Mapping[str, bytes]) -> str:
    content = "".join(f"{path} {_git_sha1(body)}\n" for path, body in sorted(files.items()))
    return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()


def _license(files: Mapping[str, bytes]) -> str | None:
    found = re.search(rb"^license: (.+)$", files.get("README.md", b""), re.MULTILINE)
    return found[1].decode() if found else None
