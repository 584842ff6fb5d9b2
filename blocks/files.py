"""Files that others read at any moment."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, whenever this process is killed."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)
