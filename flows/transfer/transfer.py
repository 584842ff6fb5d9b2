"""Bytes from a hub into stores: in parts through memory, read once, hashed in order, sent to every store, and released.

A few workers take parts of several files in turn. Each has one buffer, so memory is bounded by workers times part size,
however large the model and however many the stores. An object is completed only once its file's hash is the hub's. What
the store has not said that it has, what the provider copied without comparing, and what was there before is read back.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from types import TracebackType
from typing import Self, TypeVar

from blocks.errors import Conflict, Refused, SkyferryError, Unavailable, Unsupported
from blocks.ports.hub import Hub, Model, ModelFile
from blocks.ports.store import MultipartUpload, Part, Store
from blocks.stores.mirrors import Manifest, MirroredFile
from flows.policy.mirrors.mirror import part_bytes
from flows.runtime.retry_policy import RetryPolicy
from flows.transfer.read_back import read_back

T = TypeVar("T")

PASSES_AT_MOST = 4
"""A file is read again where its hash was wrong, once, and where an upload was taken away meanwhile."""
WORKERS = 4
MEMORY_BYTES = 128 << 20
PATIENCE = RetryPolicy()


@dataclass
class Target:
    """One store in a transfer, and what has become of it."""

    name: str
    store: Store
    prefix: str
    manifest: Manifest | None = None
    lacks: Collection[str] = ()
    """Paths that no manifest says are there."""
    there: Collection[str] = ()
    """Those of them that something of the right size lies at."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Keys of objects that the store has already, by the sha256 of their content."""
    unfinished: Mapping[str, MultipartUpload] = field(default_factory=dict)
    """Uploads to go on with, by key."""
    error: SkyferryError | None = None
    """Why it has dropped out."""
    sent_bytes: int = 0
    copied_bytes: int = 0
    """By the provider, from what it has."""
    resumed_bytes: int = 0
    """In parts, or objects, that an earlier run had sent."""
    done_files: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def done_bytes(self) -> int:
        return self.sent_bytes + self.copied_bytes + self.resumed_bytes

    def key(self, file: ModelFile) -> str:
        return self.prefix + file.path


class Transfer:
    """Copies files of a model into stores; a store that fails drops out, and the others go on."""

    def __init__(
        self,
        hub: Hub,
        model: Model,
        targets: Sequence[Target],
        *,
        workers: int = WORKERS,
        memory_bytes: int = MEMORY_BYTES,
        patience: RetryPolicy = PATIENCE,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.hub, self.model, self.targets = hub, model, targets
        self.patience, self.on_progress = patience, on_progress
        self.retries = 0
        limits = [target.store.part_limits for target in targets]
        self._part_bytes = {file.path: part_bytes(file.size_bytes, limits) for file in model.files}
        self.buffer_bytes = max((min(self._part_bytes[file.path], file.size_bytes) for file in model.files), default=0)
        self.workers = max(1, min(workers, memory_bytes // max(1, self.buffer_bytes)))
        self._readings: deque[_Reading] = deque()
        self._changed = threading.Condition()
        self._is_over = False

    def __enter__(self) -> Self:
        self._senders = ThreadPoolExecutor(self.workers * len(self.targets), thread_name_prefix="send")
        self._threads = [threading.Thread(target=self._work, name=f"part-{n}") for n in range(self.workers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What has been sent stays in the stores, for another run to go on with."""
        with self._changed:
            self._is_over = True
            for reading in self._readings:
                reading.fail(Unavailable(f"the transfer of {reading.file.path} was given up"))
            self._readings.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._senders.shutdown()

    def copy(self, file: ModelFile) -> MirroredFile | None:
        """Bring one file into every store that lacks it; returns once it is there, with its hash right.

        None where every store has it already. A store's error is kept in its target; it is raised where no store is
        left. What the hub says against the file is raised.
        """
        lacking = [target for target in self._standing() if file.path in target.lacks]
        sha256 = file.sha256
        leaders, followers = _apart(t for t in lacking if not (self._is_there(t, file) or self._is_held(t, file)))
        if leaders:
            sha256 = self._stream(file, leaders)
        left = [target for target, leader in followers if not self._follows(target, leader, file, sha256)]
        if left:
            sha256 = self._stream(file, left)
        self._raise_if_none_is_left()
        for target in lacking:
            with target.lock:
                target.done_files += target.error is None
        return None if sha256 is None else MirroredFile(path=file.path, size_bytes=file.size_bytes, sha256=sha256)

    def _is_there(self, target: Target, file: ModelFile) -> bool:
        """Does what lies there already, of the right size, turn out to be the file?"""
        if file.path not in target.there or not self._is_right(target, file, file.sha256):
            return False
        with target.lock:
            target.resumed_bytes += file.size_bytes
        self.on_progress()
        return True

    def _is_held(self, target: Target, file: ModelFile) -> bool:
        """Does the store hold these bytes under another key, so that it can copy them?

        Whoever wrote that manifest, and whatever has become of the bytes since: the copy is read.
        """
        key = None if file.sha256 is None else target.held.get(file.sha256)
        return key is not None and self._provider_copies(target, target.store, key, file, file.sha256, trusts=False)

    def _follows(self, target: Target, leader: Target, file: ModelFile, sha256: str | None) -> bool:
        return leader.error is None and self._provider_copies(
            target, leader.store, leader.key(file), file, sha256, trusts=True
        )

    def _provider_copies(
        self, target: Target, source: Store, key: str, file: ModelFile, sha256: str | None, *, trusts: bool
    ) -> bool:
        """`trusts` the source's bytes, which this run has sent there, if the provider compares them with the copy's."""
        if not target.store.copies_from(source):
            return False
        try:
            is_compared = self._patiently(f"copy {key}", lambda: target.store.copy_from(source, key, target.key(file)))
        except SkyferryError:
            return False  # a copy only saves traffic: the bytes can be sent all the same, and that says what is wrong
        if not (trusts and is_compared) and not self._is_right(target, file, sha256):
            return False
        with target.lock:
            target.copied_bytes += file.size_bytes
        self.on_progress()
        return True

    def _is_right(self, target: Target, file: ModelFile, sha256: str | None) -> bool:
        """Read an object back that nobody has vouched for; what is not the file is removed, and its bytes are sent."""
        store, key = target.store, target.key(file)
        try:
            if self._patiently(f"read {key} back", lambda: read_back(store, key, file.size_bytes)) == sha256:
                return True
            self._patiently(f"delete {key}, which is not the file", lambda: store.delete(key))
        except SkyferryError:
            return False  # whatever it is, sending the bytes says it
        return False

    def _stream(self, file: ModelFile, targets: Iterable[Target]) -> str | None:
        """Read the file until its hash is right, and complete it in every store; its sha256.

        None where all of them drop out.
        """
        size = self._part_bytes[file.path]
        deliveries = [_Delivery(target, file, size) for target in targets]
        mismatches = list[str]()
        for _ in range(PASSES_AT_MOST):
            self._each(deliveries, "begin", _Delivery.begin)
            self._raise_if_none_is_left()
            try:
                reading = self._read(_Reading(file, size, deliveries))
            except SkyferryError as error:
                if any(error is target.error for target in self.targets):
                    self._raise_if_none_is_left()
                    return None
                raise
            if (wrong := reading.mismatch()) is None:
                digest = reading.sha256.hexdigest()
                self._each(deliveries, "complete", partial(_Delivery.complete, sha256=digest))
                if all(delivery.is_done or delivery.target.error for delivery in deliveries):
                    return digest
            elif mismatches:
                self._each(deliveries, "abort", _Delivery.abort)  # nobody goes on with bytes that are wrong
                raise Refused(
                    f"{file.path}: {mismatches[0]}; read once more, {wrong}; nothing was published; "
                    f"ask the hub's owner, or mirror another revision"
                )
            else:
                mismatches.append(wrong)
        raise Unavailable(
            f"{file.path} was taken away, or not the same, {PASSES_AT_MOST} times; who else writes there?"
        )

    def _each(self, deliveries: Iterable["_Delivery"], what: str, act: Callable[["_Delivery"], None]) -> None:
        for delivery in deliveries:
            self._at(delivery, what, lambda delivery=delivery: act(delivery))

    def _at(self, delivery: "_Delivery", what: str, act: Callable[[], None]) -> None:
        """Do something at a store that has not failed; where it fails, it drops out."""
        if delivery.target.error is not None or delivery.is_done:
            return
        try:
            self._patiently(f"{what} {delivery.target.store.url_of(delivery.key)}", act)
        except SkyferryError as error:
            delivery.target.error = delivery.target.error or error

    def _patiently(self, what: str, act: Callable[[], T]) -> T:
        return self.patience.try_to(what, act, self._count_retry)

    def _count_retry(self) -> None:
        with self._changed:
            self.retries += 1

    def _read(self, reading: "_Reading") -> "_Reading":
        """Have the workers carry every part; returns, or raises, once none is at this file any more."""
        with self._changed:
            self._readings.append(reading)
            self._changed.notify_all()
        reading.wait()
        return reading

    def _work(self) -> None:
        buffer = _buffer(self.buffer_bytes)
        while (taken := self._take()) is not None:
            reading, number = taken
            try:
                self._carry(reading, number, buffer[: reading.length(number)])
            except BaseException as error:  # noqa: BLE001 - it is raised where the reading is waited for
                reading.fail(error)
            finally:
                reading.release()

    def _take(self) -> "tuple[_Reading, int] | None":
        """The next part of the file whose turn it is."""
        with self._changed:
            while not self._readings:
                if self._is_over:
                    return None
                self._changed.wait()
            reading = self._readings.popleft()
            number = reading.take()
            if reading.has_more:
                self._readings.append(reading)
            return reading, number

    def _carry(self, reading: "_Reading", number: int, view: memoryview) -> None:
        """Fetch one part, hash it once all parts before are hashed, and send it to every store."""
        if reading.error is not None:
            return
        file, start = reading.file, (number - 1) * reading.part_bytes
        self._patiently(f"read part {number} of {file.path}", lambda: self._fetch(reading, number, start, view))
        if not reading.hash_in_turn(number, view) or (reading.parts == 1 and reading.mismatch()):
            return
        deliveries = [one for one in reading.deliveries if one.target.error is None and not one.is_done]
        if len(deliveries) == 1:
            self._send(deliveries[0], number, view)
        else:
            for sending in [self._senders.submit(self._send, delivery, number, view) for delivery in deliveries]:
                sending.result()
        if all(delivery.target.error for delivery in reading.deliveries):
            reading.fail(next(one.target.error for one in reading.deliveries if one.target.error))

    def _fetch(self, reading: "_Reading", number: int, start: int, view: memoryview) -> None:
        if reading.stream is None:
            try:
                self.hub.read_part(self.model, reading.file, start, view)
            except Unsupported:
                reading.stream = _Stream(lambda: self.hub.read(self.model, reading.file))
            else:
                return
        if reading.is_turn_of(number):
            reading.stream.fill(start, view)

    def _send(self, delivery: "_Delivery", number: int, view: memoryview) -> None:
        self._at(delivery, f"send part {number} of", lambda: delivery.send(number, view))
        self.on_progress()

    def _standing(self) -> list[Target]:
        return [target for target in self.targets if target.error is None]

    def _raise_if_none_is_left(self) -> None:
        if not self._standing():
            raise next(target.error for target in self.targets if target.error is not None)


def _buffer(size_bytes: int) -> memoryview:
    """Memory on huge pages where the kernel has them: on small ones a transfer costs 8 % more CPU time."""
    memory = mmap(-1, max(1, size_bytes), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(MADV_HUGEPAGE)
    return memoryview(memory)


def _apart(targets: Iterable[Target]) -> tuple[list[Target], list[tuple[Target, Target]]]:
    """The stores that bytes are sent to, and those whose provider copies from one of them."""
    leaders, followers = list[Target](), list[tuple[Target, Target]]()
    for target in targets:
        leader = next((other for other in leaders if target.store.copies_from(other.store)), None)
        if leader is None:
            leaders.append(target)
        else:
            followers.append((target, leader))
    return leaders, followers


class _Delivery:
    """One file on its way into one store; each verb can be tried again."""

    def __init__(self, target: Target, file: ModelFile, size: int) -> None:
        self.target, self.file, self.part_bytes, self.key = target, file, size, target.key(file)
        self.is_whole = file.size_bytes <= size
        self.is_done = False
        self._found = target.unfinished.get(self.key)
        self._upload: MultipartUpload | None = None
        self._parts: dict[int, Part] = {}
        self._is_sent = False
        """An object is there, and only reading it tells whether it is the file."""

    def begin(self) -> None:
        """Go on with the upload that an earlier run has left, if its parts are cut as ours are; else begin one."""
        self._is_sent = False
        if self.is_whole or self._upload is not None:
            return
        store, found, self._found = self.target.store, self._found, None
        if found is not None:
            try:
                parts = {part.number: part for part in store.sent(found)}
            except Conflict:
                pass  # somebody removed it meanwhile
            except Unavailable:
                self._found = found
                raise
            else:
                if all(part.size_bytes == self._length(part.number) for part in parts.values()):
                    self._upload, self._parts = found, parts
                    return
                store.abort(found)
        self._upload, self._parts = store.begin(self.key), {}

    def send(self, number: int, view: memoryview) -> None:
        store, upload, standing = self.target.store, self._upload, self._parts.get(number)
        if self.is_whole:
            self.is_done = store.write(self.key, view)
            self._is_sent = not self.is_done
        elif upload is None:
            return  # taken away from us: another reading begins anew
        elif standing is not None and store.holds(standing, view):
            self._parts[number] = replace(standing, checksum=store.checksum(view))
            with self.target.lock:
                self.target.resumed_bytes += len(view)
            return
        else:
            try:
                self._parts[number] = store.send(upload, number, view)
            except Conflict:
                self._upload = None
                return
        with self.target.lock:
            self.target.sent_bytes += len(view)

    def complete(self, sha256: str) -> None:
        """Done is what the store has vouched for, part by part, or what is read back as the file."""
        store = self.target.store
        if self._upload is not None:
            is_vouched = all(part.is_vouched for part in self._parts.values())
            try:
                store.complete(self._upload, [part for _, part in sorted(self._parts.items())])
            except Conflict:
                store.abort(self._upload)
                # Another run's, or our own of which the answer was lost, or a stranger.
                is_vouched = False
            self._upload, self._parts = None, {}
            self.is_done, self._is_sent = is_vouched, not is_vouched
        if self._is_sent and any(found.key == self.key for found in store.list(self.key)):
            self.is_done = read_back(store, self.key, self.file.size_bytes) == sha256
            if not self.is_done:
                store.delete(self.key)  # no manifest names it, and it is not the file

    def abort(self) -> None:
        if self._upload is not None:
            self.target.store.abort(self._upload)

    def _length(self, number: int) -> int:
        return _length(self.file, self.part_bytes, number)


class _Stream:
    """A whole file, for hubs that give no part of one; where it breaks off, it is read from its beginning again."""

    def __init__(self, read: Callable[[], Iterator[bytes]]) -> None:
        self._read, self._pieces = read, iter(())
        self._rest, self._at = memoryview(b""), -1
        """What is left of the last piece, and where in the file that is; -1 where nothing is open."""

    def fill(self, start: int, view: memoryview) -> None:
        """By one thread at a time."""
        if self._at != start:
            self._pieces, self._rest, self._at = self._read(), memoryview(b""), 0
        try:
            while self._at < start:
                self._take(start - self._at)
            filled = 0
            while filled < len(view):
                piece = self._take(len(view) - filled)
                view[filled : filled + len(piece)] = piece
                filled += len(piece)
        except BaseException:
            self._at = -1
            raise

    def _take(self, most: int) -> memoryview:
        if not self._rest:
            if (piece := next(self._pieces, None)) is None:
                raise Unavailable(f"the file ended after {self._at} bytes")
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:most], self._rest[most:]
        self._at += len(taken)
        return taken


class _Reading:
    """One reading of a file from its first byte to its last."""

    def __init__(self, file: ModelFile, size: int, deliveries: Sequence[_Delivery]) -> None:
        self.file, self.part_bytes, self.deliveries = file, size, deliveries
        self.parts = max(1, -(-file.size_bytes // size))
        self.sha256 = hashlib.sha256()
        self._git = None
        if file.sha256 is None:
            self._git = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
        self.error: BaseException | None = None
        self.stream: _Stream | None = None
        """Where the parts come from in turn, once the hub has refused to give any."""
        self._taken = self._hashed = self._released = 0
        self._changed = threading.Condition()

    def length(self, number: int) -> int:
        return _length(self.file, self.part_bytes, number)

    @property
    def has_more(self) -> bool:
        return self._taken < self.parts and self.error is None

    def take(self) -> int:
        """The number of a part that nobody has taken."""
        with self._changed:
            self._taken += 1
            return self._taken

    def is_turn_of(self, number: int) -> bool:
        """Wait until all parts before were hashed; False where one of them failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._hashed == number - 1 or self.error is not None)
            return self.error is None

    def hash_in_turn(self, number: int, view: memoryview) -> bool:
        """Once all parts before were hashed; False where one of them failed."""
        if not self.is_turn_of(number):
            return False
        # Outside the lock: nobody else's turn comes before this one says so.
        self.sha256.update(view)
        if self._git is not None:
            self._git.update(view)
        with self._changed:
            self._hashed = number
            self._changed.notify_all()
        return True

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._released += 1
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._released == (self._taken if self.error else self.parts))
        if self.error is not None:
            raise self.error

    def mismatch(self) -> str | None:
        """What is wrong with the content; None where it is the file."""
        if self._git is None:
            name, found, promised = "sha256", self.sha256.hexdigest(), self.file.sha256
        else:
            name, found, promised = "git sha1", self._git.hexdigest(), self.file.git_sha1
        return None if found == promised else f"its {name} is {found} where the hub promises {promised}"


def _length(file: ModelFile, size: int, number: int) -> int:
    return max(0, min(size, file.size_bytes - (number - 1) * size))
