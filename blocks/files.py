"""Where Skyferry's own files lie, and files that others read at any moment: all of a text or nothing."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Where blocks/ and deployments/ lie side by side, in a checkout as in an installed wheel."""


def write_atomically(path: Path, text: str) -> None:
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
