"""Files that others read at any moment, and files that say whose turn it is."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, whenever this process is killed."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


def write_private(path: Path, text: str) -> None:
    """All of it or nothing, for this user's eyes only, also where another could read the file before."""
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a key that a loss of power takes is a store that nobody opens any more
    draft.replace(path)


@contextmanager
def alone(lock_file: Path) -> Iterator[None]:
    """Wait until nobody else, in whatever process, is in here with that file; the killed let go of it."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
