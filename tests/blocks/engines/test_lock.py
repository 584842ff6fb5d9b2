"""Locks for versions of engines that Skyferry ships none for, made by uv from an index that is a folder."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from blocks.engines.lock import lock_of, version_in
from blocks.errors import Refused

FILES = {
    "METADATA": "Metadata-Version: 2.1\nName: echo-engine\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "echo_engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(f"echo_engine-1.0.dist-info/{name}", text)
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return path


def test_a_lock_has_every_hash_and_sends_nobody_anywhere(wheel: Path) -> None:
    """By what the file is, not where it lay; the same again gives the same text."""
    lock = lock_of("echo-engine", "1.0")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in lock
    assert str(wheel.parent) not in lock
    assert version_in(lock, "echo-engine") == "1.0"
    assert lock_of("echo-engine", "1.0") == lock


@pytest.mark.usefixtures("wheel")
def test_a_version_that_is_not_to_be_had_is_refused_in_uvs_words() -> None:
    """With the version, and that another has to be chosen."""
    with pytest.raises(Refused, match=r"echo-engine 2\.0 cannot be had: .*choose another version"):
        lock_of("echo-engine", "2.0")
