"""What runs on a rented machine: it fetches the weights, checks them, and only then becomes the engine.

The file is sent there alone: it needs the standard library and Python 3.9, and nothing else of Skyferry.

    python3 node.py -- vllm serve {weights_dir} --port {port} --ssl-certfile {cert} --ssl-keyfile {key}

Its settings are environment variables: SKYFERRY_FILES, as `encode_files` writes it; SKYFERRY_CERTIFICATE and
SKYFERRY_PRIVATE_KEY, in PEM; SKYFERRY_API_KEY, the only one of these that the engine gets to see; SKYFERRY_PORT, where
0 takes a free one; SKYFERRY_HOME, the directory for all of it; SKYFERRY_ENGINE_ARGUMENTS, a list in JSON of words for
the end of the engine's command line, and SKYFERRY_ENGINE_ENVIRONMENT, an object in JSON of its variables, both of which
may be missing. The port is printed and stands in SKYFERRY_HOME/port.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import socket
import sys
import time
import unicodedata
import urllib.error
import urllib.request
import zlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Callable, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FOR_THIS_PROGRAM = ("SKYFERRY_FILES", "SKYFERRY_CERTIFICATE", "SKYFERRY_PRIVATE_KEY")
OF_THE_ENGINE = ("SKYFERRY_ENGINE_ARGUMENTS", "SKYFERRY_ENGINE_ENVIRONMENT")
"""What a release says of its engine beside the task; no shell reads it on its way to the engine."""

ONE_VARIABLE_BYTES = 128 * 1024 - 64
"""What Linux lets one environment variable hold, name included."""

ROOM_BYTES = 2 << 30
"""What has to be left of a disk beside the weights, for what the engine compiles and prints."""
PART_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
PARTS_AT_ONCE = 16
FRUITLESS_TRIES = 6
"""So often in a row may a part be asked for without a single byte of it."""
SILENCE_SECONDS = 60
PROGRESS_SECONDS = 10

WORTH_ANOTHER_TRY = {408, 425, 429}
"""Among the answers that begin with 4."""

SHA256 = "^[0-9a-f]{64}$"
LARGEST_FILE_BYTES = 5 << 40
"""More than any one file of a model has, and what S3 and Google took as one object for most of their lives."""
LONGEST_NAME_BYTES = 255
"""Of a file or a folder, on the file systems that there are."""
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what ends a line, turns the writing round or is no character: no name needs it."""

PORTS = range(10_000, 32_768)
"""Below those that outgoing connections are given, so that the engine finds its port still free."""


class CannotServe(Exception):
    """Why there is no replica on this machine."""


class File(NamedTuple):
    """One file of a model's mirror."""

    path: str
    size_bytes: int
    sha256: str
    url: str
    """Where it is read without credentials: a secret, for as long as it holds."""


def fault_of_path(path: str) -> str | None:
    """Why a file of a mirror must not be called so, as the rest of a sentence; None where it may.

    A path is names with a slash between each two of them, and leads nowhere but down.
    """
    if any(unicodedata.category(character) in UNSEEN for character in path):
        return "has a character that cannot be seen"
    names = path.split("/")
    if "\\" in path or any(name in ("", ".", "..") for name in names):
        return "leads out of its folder, or has a part without a name"
    if any(len(name.encode()) > LONGEST_NAME_BYTES for name in names):
        return f"has a name of more than {LONGEST_NAME_BYTES} bytes"
    return None


def fault_of_paths(paths: Iterable[str]) -> str | None:
    """Why these files cannot lie beside each other; None where they can."""
    files = Counter(paths)
    for path, count in files.items():
        if count > 1:
            return f"{path!r} is named {count} times"
        names = path.split("/")
        for depth in range(1, len(names)):
            if (folder := "/".join(names[:depth])) in files:
                return f"{folder!r} is a file, and the folder of {path!r}"
    return None


def encode_files(files: Sequence[File]) -> str:
    """For SKYFERRY_FILES: signed addresses are long and nearly the same, so hundreds fit when they are packed."""
    text = json.dumps([file._asdict() for file in files])
    encoded = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    if len(encoded) > ONE_VARIABLE_BYTES:
        raise CannotServe(
            f"the addresses of {len(files)} files take {len(encoded)} bytes, and an environment variable holds "
            f"{ONE_VARIABLE_BYTES}; mirror the model in fewer, larger files"
        )
    return encoded


def decode_files(encoded: str) -> list[File]:
    try:
        files = [File(**file) for file in json.loads(zlib.decompress(base64.b64decode(encoded)))]
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        # Nothing of it is shown: it is full of signed addresses.
        raise CannotServe(
            f"SKYFERRY_FILES is not what encode_files() writes ({type(error).__name__}); launch the replica again"
        ) from None
    _check_sound(files)
    return files


def _check_sound(files: Sequence[File]) -> None:
    """Before a byte is fetched: what a manifest says becomes sizes, hashes and paths of this machine."""
    for file in files:
        fault = fault_of_path(file.path) if isinstance(file.path, str) else "is no text"
        size, sha256 = file.size_bytes, file.sha256
        if fault is None and (type(size) is not int or not 0 <= size <= LARGEST_FILE_BYTES):
            fault = f"has the size {size!r}, which is none"
        if fault is None and (not isinstance(sha256, str) or re.fullmatch(SHA256, sha256) is None):
            fault = f"has the sha256 {sha256!r}, which is none"
        if fault is None and not isinstance(file.url, str):
            fault = "has an address that is no text"
        if fault is not None:
            raise CannotServe(f"the file {file.path!r} {fault}; delete the mirror and make it anew")
    if (fault := fault_of_paths(file.path for file in files)) is not None:
        raise CannotServe(f"{fault}; delete the mirror and make it anew")


def fetch(
    files: Sequence[File], directory: Path, *, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Have all these files there, each with its size and sha256; what is there and right is not fetched again.

    Raises CannotServe, with nothing wrong left behind, where that cannot be.
    """
    _check_sound(files)
    try:
        _fetch(files, directory, say, sleep)
    except OSError as error:
        raise CannotServe(
            f"{directory} cannot take the weights: {error.strerror} ({error.filename}); see to this machine's disk"
        ) from None


def _fetch(files: Sequence[File], directory: Path, say: Callable[[str], None], sleep: Callable[[float], None]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(_drafts(directory), ignore_errors=True)
    _drafts(directory).mkdir()
    _remove_strangers(files, directory)
    given_up = Event()
    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        try:
            missing = [
                file
                for file, is_there in zip(files, pool.map(lambda f: _is_there(f, directory), files))
                if not is_there
            ]
            _check_room(missing, directory)
            for file in missing:
                _draft(file, directory).parent.mkdir(parents=True, exist_ok=True)
                with _draft(file, directory).open("wb") as draft:
                    draft.truncate(file.size_bytes)
            say(f"fetching {len(missing)} of {len(files)} files, {_gib(missing)}; the others are there")
            parts = {
                pool.submit(_fetch_part, file, _draft(file, directory), start, end, given_up, sleep): (
                    file,
                    end - start,
                )
                for file in missing
                for start, end in _parts(file.size_bytes)
            }
            _finish_each(parts, missing, directory, pool, say)
        except BaseException:
            given_up.set()
            pool.shutdown(wait=True)
            raise
        finally:
            shutil.rmtree(_drafts(directory), ignore_errors=True)
    say(f"{len(files)} files, {_gib(files)}, are here and have the sha256 that the manifest says")


def _finish_each(
    parts: Mapping[Future[None], tuple[File, int]],
    missing: Sequence[File],
    directory: Path,
    pool: ThreadPoolExecutor,
    say: Callable[[str], None],
) -> None:
    """Check each file as soon as its last part is there, while others are still fetched."""
    open_parts = Counter(file for file, _ in parts.values())
    checks = [pool.submit(_check, file, directory) for file in missing if not open_parts[file]]
    fetched_bytes, told_at = 0, time.monotonic()
    for part in as_completed(parts):
        part.result()
        file, size_bytes = parts[part]
        fetched_bytes += size_bytes
        open_parts[file] -= 1
        if not open_parts[file]:
            checks.append(pool.submit(_check, file, directory))
        if time.monotonic() > told_at + PROGRESS_SECONDS:
            told_at = time.monotonic()
            say(f"{fetched_bytes / 2**30:.1f} of {_gib(missing)} fetched")
    for check in as_completed(checks):
        check.result()


def _drafts(directory: Path) -> Path:
    """Beside the weights: among them, a draft could have the name of another file of the model."""
    return directory.with_name(f"{directory.name}.drafts")


def _draft(file: File, directory: Path) -> Path:
    return _drafts(directory) / file.path


def _gib(files: Sequence[File]) -> str:
    return f"{sum(file.size_bytes for file in files) / 2**30:.1f} GiB"


def _parts(size_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size_bytes, PART_BYTES):
        yield start, min(start + PART_BYTES, size_bytes)


def _remove_strangers(files: Sequence[File], directory: Path) -> None:
    """An engine loads whatever has the right ending, so nothing unchecked may lie beside the weights."""
    known = {directory / file.path for file in files}
    for path in directory.rglob("*"):
        if path.is_symlink() or (not path.is_dir() and path not in known):
            path.unlink()


def _is_there(file: File, directory: Path) -> bool:
    path = directory / file.path
    if not path.is_file():
        return False
    if path.stat().st_size == file.size_bytes and _sha256(path) == file.sha256:
        return True
    path.unlink()
    return False


def _check(file: File, directory: Path) -> None:
    draft = _draft(file, directory)
    if (found := _sha256(draft)) != file.sha256:
        raise CannotServe(
            f"{file.path} came with the sha256 {found} where the manifest says {file.sha256}; it was deleted; "
            f"if that stays so, delete the mirror and make it anew"
        )
    (directory / file.path).parent.mkdir(parents=True, exist_ok=True)
    draft.replace(directory / file.path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_room(missing: Sequence[File], directory: Path) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if missing and sum(file.size_bytes for file in missing) > free_bytes - ROOM_BYTES:
        raise CannotServe(
            f"{directory} has room for {free_bytes / 2**30:.1f} GiB and the weights take {_gib(missing)}, beside "
            f"{ROOM_BYTES / 2**30:.0f} GiB that the engine needs; make room on this machine, or ask for a larger disk"
        )


def _fetch_part(file: File, draft: Path, start: int, end: int, given_up: Event, sleep: Callable[[float], None]) -> None:
    """Bytes from start to end, asked for again from where they broke off."""
    at, fruitless = start, 0
    with draft.open("r+b") as target:
        while at < end and not given_up.is_set():
            before, words = at, "the answer broke off"
            try:
                with closing(_open(file, at, end)) as body:
                    while at < end and not given_up.is_set() and (chunk := body.read(min(CHUNK_BYTES, end - at))):
                        _write(target.fileno(), chunk, at, file)
                        at += len(chunk)
            except urllib.error.HTTPError as error:
                words = f"HTTP {error.code}"
                if 400 <= error.code < 500 and error.code not in WORTH_ANOTHER_TRY:  # noqa: PLR2004 - what HTTP calls them
                    raise CannotServe(
                        f"the store answered {words} for {file.path}; its address may have run out, or the file is "
                        f"gone: launch the replica again, or mirror the model again"
                    ) from None
            except (OSError, http.client.HTTPException) as error:
                words = _words_of(error)
            fruitless = 0 if at > before else fruitless + 1
            if fruitless == FRUITLESS_TRIES:
                raise CannotServe(
                    f"{file.path} could not be fetched from byte {at} on, {fruitless} times in a row: {words}; "
                    f"see that this machine reaches the store"
                )
            if at < end:
                sleep(random.uniform(0.5, 1) * 2**fruitless)  # noqa: S311 - so that the parts do not come back together


def _open(file: File, start: int, end: int) -> http.client.HTTPResponse:
    if not file.url.startswith(("https://", "http://")):
        raise CannotServe(f"the address of {file.path} is neither https nor http; the fleet has to sign another")
    try:
        request = urllib.request.Request(file.url, headers={"Range": f"bytes={start}-{end - 1}"})  # noqa: S310 - see above
        answer = urllib.request.urlopen(request, timeout=SILENCE_SECONDS)  # noqa: S310 - see above
    except (http.client.InvalidURL, ValueError):
        # Their messages quote the address.
        raise CannotServe(f"the address of {file.path} is no address; the fleet has to sign another") from None
    ranged = answer.status == http.client.PARTIAL_CONTENT
    stated = answer.headers.get("Content-Range", "").rpartition("/")[2] if ranged else answer.headers["Content-Length"]
    if not ranged and start > 0:
        answer.close()
        raise CannotServe(f"the store gives no part of {file.path}, only the whole; it has to honour Range")
    if stated not in (None, "", "*", str(file.size_bytes)):
        answer.close()
        raise CannotServe(
            f"{file.path} has {stated} bytes where the manifest says {file.size_bytes}; "
            f"delete the mirror and make it anew"
        )
    return answer


def _write(descriptor: int, chunk: bytes, at: int, file: File) -> None:
    try:
        written = 0
        while written < len(chunk):
            written += os.pwrite(descriptor, chunk[written:], at + written)
    except OSError as error:
        raise CannotServe(f"{file.path} could not be written: {error.strerror}; make room on this machine") from None


def _words_of(error: BaseException) -> str:
    """What happened, without the address: some messages quote it."""
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__} {getattr(reason, 'strerror', None) or ''}".strip()


def write_secret(path: Path, text: str) -> None:
    """For this user's eyes only, from the first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def free_port() -> int:
    """One that nobody on this machine listens on at this moment."""
    for port in random.sample(PORTS, len(PORTS)):
        try:
            socket.create_server(("", port)).close()
        except OSError:
            continue
        return port
    raise CannotServe(f"every port from {PORTS.start} to {PORTS.stop - 1} is taken; end something on this machine")


def fill_in(command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The command with each `{name}` that there is replaced, and every other brace left as it stands."""
    filled = []
    for word in command:
        for name, value in values.items():
            word = word.replace(f"{{{name}}}", value)  # noqa: PLW2901 - one name after the other
        filled.append(word)
    return filled


def say(words: str) -> None:
    print(f"skyferry: {words}", flush=True)  # noqa: T201 - the job's log is stdout


def prepare(command: Sequence[str], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The engine's command and its environment, once all that it needs is in place."""
    home = Path(env.get("SKYFERRY_HOME") or "~/skyferry").expanduser().absolute()
    weights, cert, key, port_file = (home / name for name in ("weights", "replica.crt", "replica.key", "port"))
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    port_file.unlink(missing_ok=True)
    for name in (*FOR_THIS_PROGRAM, "SKYFERRY_API_KEY"):
        if not env.get(name):
            raise CannotServe(f"the environment variable {name} is not set; the fleet has to give it")
    if not env.get("SKYFERRY_PORT", "0").isdecimal():
        raise CannotServe(f"SKYFERRY_PORT is {env['SKYFERRY_PORT']!r} and no port; give a number, or 0 for a free one")
    fetch(decode_files(env["SKYFERRY_FILES"]), weights, say=say)
    write_secret(cert, env["SKYFERRY_CERTIFICATE"])
    write_secret(key, env["SKYFERRY_PRIVATE_KEY"])
    port = int(env.get("SKYFERRY_PORT", "0")) or free_port()
    port_file.write_text(f"{port}\n")
    values = {"weights_dir": str(weights), "port": str(port), "cert": str(cert), "key": str(key)}
    arguments, variables = engine_of(env)
    say(f"serving on port {port}")
    for_the_engine = {name: value for name, value in env.items() if name not in (*FOR_THIS_PROGRAM, *OF_THE_ENGINE)}
    return [*fill_in(command, values), *arguments], {**for_the_engine, **variables}


def engine_of(env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The words for its command line, and its variables."""
    arguments: list[str] = []
    variables: dict[str, str] = {}
    try:
        arguments, variables = (json.loads(env.get(name) or none) for name, none in zip(OF_THE_ENGINE, ("[]", "{}")))
        words = [*arguments, *variables, *variables.values()]
        is_sound = isinstance(arguments, list) and all(isinstance(word, str) for word in words)
    except (ValueError, TypeError, AttributeError):
        is_sound = False
    if not is_sound:
        raise CannotServe(f"{' or '.join(OF_THE_ENGINE)} is not what a fleet writes; launch the replica again")
    return arguments, variables


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] != ["--"] or not arguments[1:]:
        sys.exit("skyferry: give the engine's command after --")
    try:
        command, env = prepare(arguments[1:], os.environ)
    except CannotServe as error:
        sys.exit(f"skyferry: {error}")
    try:
        # In this process's place: what is sent to end the replica reaches the engine itself.
        os.execvpe(command[0], command, env)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.exit(f"skyferry: {command[0]} could not be started: {error.strerror}; see that the setup installed it")


if __name__ == "__main__":
    main(sys.argv[1:])
