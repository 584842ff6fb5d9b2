"""A directory as a store: a disk of this machine, or a file system that many machines mount."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from awscrt.checksums import crc64nvme
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field

from blocks.errors import Conflict, Refused, Unavailable
from blocks.fields import OfItsKind
from blocks.ports.store import MultipartUpload, Objects, Part, PartLimits, StoredObject, VersionedObject

CHUNK_BYTES = 8 << 20
OWN = ".skyferry"
"""What the store keeps for itself below the directory: drafts, parts and the lock. No key begins with it."""
PART_NAME = re.compile(r"(\d{5})-([0-9a-f]{16})")


class DirectoryStore(OfItsKind, Block):
    """A directory that holds mirrors and the ledger: a local disk, NFS, Lustre, or a bucket mounted as files."""

    _block_type_name = "Directory Store"
    _block_type_slug = "directory-store"
    model_config = ConfigDict(hide_input_in_errors=True)

    directory: Path = Field(
        title="Directory",
        description="Where the objects lie; it has to be there. On what is mounted, name a directory below the mount.",
    )

    @property
    def near(self) -> tuple[str, ...]:
        """No cell: see `presigned_url`."""
        return ()

    def presigned_url(self, key: str, seconds: int) -> str:
        """Refused: no other machine reads a directory by an address."""
        raise Refused(
            f"{self.url_of(key)} has no address that another machine reads for {seconds} s; give the fleet a bucket"
        )

    def get(self, key: str) -> VersionedObject | None:
        with self._translated(f"get {key}"):
            try:
                body = self._path(key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        return VersionedObject(body, _etag(body))

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        """Writers on other machines are kept apart where the file system has locks that they share."""
        with self._translated(f"put {key}"), self._locked():
            standing = self.get(key)
            if (None if standing is None else standing.etag) != replacing:
                expected = "no version" if replacing is None else f"version {replacing}"
                raise Conflict(f"{self.url_of(key)}: expected {expected}, found another; read it again")
            self._place(key, [memoryview(body)])
        return _etag(body)

    def write(self, key: str, body: bytes | memoryview) -> bool:
        with self._translated(f"write {key}"):
            self._place(key, [memoryview(body)])
        return True

    def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        with self._translated(f"read {key}"), self._path(key).open("rb") as file:
            file.seek(start)
            left = os.fstat(file.fileno()).st_size if size_bytes is None else size_bytes
            while left > 0 and (chunk := file.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    def list(self, prefix: str) -> Iterator[StoredObject]:
        # Only what lies in the prefix's last folder, or below, can begin with the prefix.
        folder = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.directory
        with self._translated(f"list {prefix}"):
            found = [
                StoredObject(key, path.stat().st_size)
                for path in folder.rglob("*")
                if path.is_file()
                and (key := path.relative_to(self.directory).as_posix()).startswith(prefix)
                and not key.startswith(OWN)
            ]
        yield from sorted(found, key=lambda stored: stored.key)

    def delete(self, key: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - Block.delete deletes blocks
        with self._translated(f"delete {key}"):
            path = self._path(key)
            with suppress(NotADirectoryError):
                path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.directory:
                    break
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    break  # something else lies in it

    def url_of(self, key: str) -> str:
        return f"file://{self.directory}/{key}"

    @property
    def part_limits(self) -> PartLimits:
        return PartLimits(smallest_bytes=1, largest_bytes=1 << 40, parts=99_999)

    def checksum(self, body: memoryview) -> str:
        return f"{crc64nvme(body):016x}"  # pyright: ignore[reportArgumentType] - it takes any buffer

    def begin(self, key: str) -> MultipartUpload:
        with self._translated(f"begin an upload of {key}"):
            upload = self._uploads / uuid.uuid4().hex
            upload.mkdir(parents=True)
            (upload / "key").write_text(key)
            return MultipartUpload(key, upload.name, (upload / "key").stat().st_mtime)

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        """The name of a part's file says what is in it, so that half a part is none."""
        name = f"{number:05}-{self.checksum(body)}"
        with self._translated(f"write part {number} of {upload.key}"):
            home = self._home(upload)
            draft = home / f"{uuid.uuid4().hex}.draft"
            try:
                draft.write_bytes(body)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            for earlier in home.glob(f"{number:05}-*"):
                earlier.unlink()
            draft.replace(home / name)
        return Part(number, len(body), name, name.partition("-")[2])

    def holds(self, part: Part, body: memoryview) -> bool:
        """The name alone is no proof, but what is put together is read from the disk once more."""
        return part.checksum == self.checksum(body)

    def sent(self, upload: MultipartUpload) -> tuple[Part, ...]:
        with self._translated(f"list the parts of {upload.key}"):
            named = [(PART_NAME.fullmatch(path.name), path) for path in sorted(self._home(upload).iterdir())]
            return tuple(
                Part(int(name[1]), path.stat().st_size, path.name, name[2]) for name, path in named if name is not None
            )

    def complete(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        """Each part is read back from the disk and checked as the object is put together."""
        with self._translated(f"complete {upload.key}"):
            home = self._home(upload)
            with self._locked():
                if self._path(upload.key).exists():
                    raise Conflict(f"{self.url_of(upload.key)} is there already; see what stands there")
                self._place(upload.key, (self._checked(home, upload, part) for part in parts))
            shutil.rmtree(home)

    def abort(self, upload: MultipartUpload) -> None:
        with self._translated(f"abort the upload of {upload.key}"), suppress(FileNotFoundError):
            shutil.rmtree(self._uploads / upload.id)

    def unfinished(self, prefix: str) -> tuple[MultipartUpload, ...]:
        with self._translated(f"list the unfinished uploads of {prefix}"):
            found = [
                MultipartUpload(key.read_text(), key.parent.name, key.stat().st_mtime)
                for key in self._uploads.glob("*/key")
            ]
        return tuple(sorted((u for u in found if u.key.startswith(prefix)), key=lambda upload: upload.started_at))

    def copies_from(self, source: Objects) -> bool:
        return isinstance(source, DirectoryStore)

    def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
        """Nobody compares it; a file system that can share blocks between files copies nothing."""
        if not isinstance(source, DirectoryStore):
            raise Refused(f"{source.url_of(source_key)} is of another provider; send its bytes to {self.url_of(key)}")
        with self._translated(f"copy {source.url_of(source_key)} to {key}"):
            draft = self._draft()
            try:
                shutil.copyfile(source._path(source_key), draft)  # noqa: SLF001 - of the same class
                self._publish(draft, key)
            finally:
                draft.unlink(missing_ok=True)
        return False

    def _checked(self, home: Path, upload: MultipartUpload, part: Part) -> memoryview:
        try:
            body = memoryview((home / f"{part.number:05}-{part.checksum}").read_bytes())
        except FileNotFoundError:
            body = memoryview(b"")
        if self.checksum(body) != part.checksum or len(body) != part.size_bytes:
            raise Conflict(
                f"{self.url_of(upload.key)}: part {part.number} is not what was sent; see what stands there, "
                f"and begin anew"
            )
        return body

    @property
    def _uploads(self) -> Path:
        return self.directory / OWN / "uploads"

    def _home(self, upload: MultipartUpload) -> Path:
        home = self._uploads / upload.id
        if not home.exists():
            raise Conflict(f"{self.url_of(upload.key)}: the upload {upload.id} is gone; begin anew")
        return home

    def _draft(self) -> Path:
        drafts = self.directory / OWN / "drafts"
        drafts.mkdir(parents=True, exist_ok=True)
        return drafts / uuid.uuid4().hex

    def _place(self, key: str, bodies: Iterator[memoryview] | Sequence[memoryview]) -> None:
        draft = self._draft()
        try:
            with draft.open("wb") as file:
                for body in bodies:
                    file.write(body)
                file.flush()
                os.fsync(file.fileno())
            self._publish(draft, key)
        finally:
            draft.unlink(missing_ok=True)

    def _publish(self, draft: Path, key: str) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(path)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if key.startswith(("/", OWN)) or ".." in parts or "\0" in key:
            raise Refused(f"{key!r} is no key of a directory store; give one without .. that begins with a name")
        return self.directory / key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        home = self.directory / OWN
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, whoever dies
            yield

    @contextmanager
    def _translated(self, act: str) -> Iterator[None]:
        try:
            if not self.directory.is_dir():
                # Made here, it would lie on this machine's own disk, and its ledger would be an empty one.
                raise Unavailable(f"{self.directory} did not {act}: {AWAY}")
            yield
        except FileNotFoundError:
            raise Refused(f"{self.directory} did not {act}: it is not there; mirror the model again") from None
        except OSError as error:
            said = f"{self.directory} did not {act}: {error.strerror or error}"
            if (step := LASTING.get(error.errno or 0)) is not None:
                raise Refused(f"{said}; {step}") from None
            raise Unavailable(f"{said}; see that its file system is there") from None


AWAY = "the directory is not there; see that its file system is mounted, or make it where it is new"
LASTING = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there"),
    errno.EROFS: "mount it so that it can be written",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "let this user write there"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), "move what stands in the way there"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ), "give it a name that the file system takes"),
    errno.EFBIG: "use a file system that takes files of this size",
    **dict.fromkeys((errno.ELOOP, errno.EXDEV, errno.ENOTSUP), "use another directory: this one cannot do that"),
}
"""What no waiting mends, by the system's number, and what does. All else may be a file system that comes back."""


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
