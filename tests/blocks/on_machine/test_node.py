"""What a rented machine does before the engine may serve: fetch, check, write the secrets, and only then begin."""

import hashlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from blocks.on_machine import node
from blocks.on_machine.node import (
    FRUITLESS_TRIES,
    ONE_VARIABLE_BYTES,
    PART_BYTES,
    CannotServe,
    File,
    decode_files,
    encode_files,
    fetch,
    fill_in,
)

SIGNATURE = "X-Amz-Signature=not-for-anybodys-eyes"


@dataclass
class Mirror:
    """Files behind signed addresses, and what goes wrong the next times that they are asked for."""

    bodies: dict[str, bytes]
    address: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each request."""
    cuts: list[int] = field(default_factory=list)
    """So many bytes of the next answers come before they break off."""
    errors: list[int] = field(default_factory=list)
    """The statuses of the next answers."""
    honours_range: bool = True

    def files(self) -> list[File]:
        return [self.file(path) for path in self.bodies]

    def file(self, path: str) -> File:
        body = self.bodies[path]
        url = f"http://{self.address}/{path}?{SIGNATURE}"
        return File(path, len(body), hashlib.sha256(body).hexdigest(), url)


@contextmanager
def mirror_of(bodies: dict[str, bytes]) -> Iterator[Mirror]:
    mirror = Mirror(dict(bodies))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0][1:]
            mirror.asked.append((path, self.headers["Range"]))
            if mirror.errors or path not in mirror.bodies:
                self.send_error(mirror.errors.pop(0) if mirror.errors else 404)
                return
            whole = mirror.bodies[path]
            start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            body = whole[start : end + 1] if mirror.honours_range else whole
            self.send_response(206 if mirror.honours_range else 200)
            if mirror.honours_range:
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(whole)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: mirror.cuts.pop(0)] if mirror.cuts else body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror.address = f"127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield mirror
        finally:
            server.shutdown()


MODEL = {"config.json": b"{}", "empty.txt": b"", "onnx/model.bin": b"weights " * 1000}


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with mirror_of(MODEL) as running:
        yield running


@dataclass
class Fetched:
    directory: Path
    said: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def fetch(self, files: list[File]) -> None:
        fetch(files, self.directory, say=self.said.append, sleep=self.waits.append)

    @property
    def bodies(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.directory).as_posix(): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def machine(tmp_path: Path) -> Fetched:
    return Fetched(tmp_path / "weights")


def test_all_files_come_as_they_are_in_the_mirror(mirror: Mirror, machine: Fetched) -> None:
    """Those in folders and those without a byte too, and nothing else lies there afterwards."""
    machine.fetch(mirror.files())
    assert machine.bodies == MODEL
    assert machine.waits == []


def test_a_large_file_comes_in_parts(machine: Fetched) -> None:
    """Each part is asked for by its range, and together they are the file."""
    body = secrets.token_bytes(1 << 20) * (2 * PART_BYTES >> 20) + b"the end"
    with mirror_of({"model.safetensors": body}) as mirror:
        machine.fetch(mirror.files())
    assert machine.bodies["model.safetensors"] == body
    assert sorted(int(asked.removeprefix("bytes=").split("-")[0]) for _, asked in mirror.asked) == [
        0,
        PART_BYTES,
        2 * PART_BYTES,
    ]


def test_a_wrong_byte_is_found_before_anything_serves(mirror: Mirror, machine: Fetched) -> None:
    """The file is named with both hashes and deleted; what was right stays for the next try."""
    files = mirror.files()
    mirror.bodies["onnx/model.bin"] = b"weightz " + MODEL["onnx/model.bin"][8:]
    with pytest.raises(CannotServe, match=rf"onnx/model\.bin came with .* the manifest says {files[2].sha256}"):
        machine.fetch(files)
    assert set(machine.bodies) <= {"config.json", "empty.txt"}


@pytest.mark.parametrize("honours_range", [True, False])
def test_a_file_of_another_size_is_refused(mirror: Mirror, machine: Fetched, *, honours_range: bool) -> None:
    """With both sizes, before its bytes are fetched."""
    files = mirror.files()
    mirror.bodies["config.json"] = b"{} and more"
    mirror.honours_range = honours_range
    with pytest.raises(CannotServe, match=r"config\.json has 11 bytes where the manifest says 2"):
        machine.fetch(files)
    assert "config.json" not in machine.bodies


def test_an_answer_that_breaks_off_is_taken_up_where_it_broke(mirror: Mirror, machine: Fetched) -> None:
    """No byte is asked for twice."""
    mirror.cuts = [5000, 1]
    machine.fetch([mirror.file("onnx/model.bin")])
    assert machine.bodies == {"onnx/model.bin": MODEL["onnx/model.bin"]}
    assert [asked for _, asked in mirror.asked] == ["bytes=0-7999", "bytes=5000-7999", "bytes=5001-7999"]
    assert len(machine.waits) == 2


def test_a_store_that_is_busy_is_asked_again_later(mirror: Mirror, machine: Fetched) -> None:
    """Each time after a longer wait."""
    mirror.errors = [503, 429, 500]
    machine.fetch([mirror.file("config.json")])
    assert machine.bodies == {"config.json": b"{}"}
    assert len(machine.waits) == 3
    assert machine.waits == sorted(machine.waits)


def test_a_store_that_stays_silent_is_given_up(mirror: Mirror, machine: Fetched) -> None:
    """After a number of tries, with what it answered and no secret."""
    mirror.errors = [503] * 100
    with pytest.raises(CannotServe, match=rf"config\.json .* {FRUITLESS_TRIES} times in a row: HTTP 503") as raised:
        machine.fetch([mirror.file("config.json")])
    assert len(mirror.asked) == FRUITLESS_TRIES
    assert SIGNATURE not in str(raised.value)
    assert machine.bodies == {}


def test_a_store_that_is_not_there_is_given_up(machine: Fetched) -> None:
    """A connection that is refused is named as that."""
    with mirror_of(MODEL) as mirror:
        files = mirror.files()
    with pytest.raises(CannotServe, match="ConnectionRefusedError Connection refused; see that this machine") as raised:
        machine.fetch(files)
    assert SIGNATURE not in str(raised.value)


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_may_not_be_read_is_refused_at_once(mirror: Mirror, machine: Fetched, status: int) -> None:
    """An address that has run out, or a file that is gone, does not come back by waiting."""
    mirror.errors = [status]
    with pytest.raises(CannotServe, match=rf"HTTP {status} for config\.json") as raised:
        machine.fetch([mirror.file("config.json")])
    assert machine.waits == []
    assert SIGNATURE not in str(raised.value)


def test_what_is_there_and_right_is_not_fetched_again(mirror: Mirror, machine: Fetched) -> None:
    """What is there and wrong is, and what nobody knows goes: an engine would load it."""
    machine.fetch(mirror.files())
    (machine.directory / "onnx/model.bin").write_bytes(b"weightz " + MODEL["onnx/model.bin"][8:])
    (machine.directory / "stranger.safetensors").write_bytes(b"unchecked")
    mirror.asked.clear()
    machine.fetch(mirror.files())
    assert [path for path, _ in mirror.asked] == ["onnx/model.bin"]
    assert machine.bodies == MODEL


def test_a_store_without_ranges_can_give_small_files_only(machine: Fetched) -> None:
    """A part cannot be cut out of a whole that begins anew each time."""
    with mirror_of({"small": b"small", "large": bytes(PART_BYTES + 1)}) as mirror:
        mirror.honours_range = False
        machine.fetch([mirror.file("small")])
        with pytest.raises(CannotServe, match="no part of large, only the whole"):
            machine.fetch([mirror.file("large")])


ELSEWHERE = "https://192.0.2.1/x"


@pytest.mark.parametrize(
    "path",
    [
        *("../model.bin", "/etc/passwd", "a/../../b", "", ".", "a/", "a//b", "./a", "a\\b", "a\0b", "a\nb"),
        *("x" * 256, "\ud800", None, 7, ["a"]),
    ],
)
def test_no_file_leaves_the_directory(machine: Fetched, path: str) -> None:
    """A mirror's manifest cannot write elsewhere on the machine; what is no path is refused in words."""
    with pytest.raises(CannotServe, match=r"the file .*; delete the mirror and make it anew"):
        machine.fetch([File(path, 1, "0" * 64, ELSEWHERE)])
    assert not machine.directory.exists()


@pytest.mark.parametrize("size", [-1, 1.5, "1", None, True, (5 << 40) + 1, 10**30, [1]])
def test_a_size_that_is_none_is_refused(machine: Fetched, size: int) -> None:
    """Before a file of that size is made."""
    with pytest.raises(CannotServe, match=r"the file 'model\.bin' has the size .*, which is none"):
        machine.fetch([File("model.bin", size, "0" * 64, ELSEWHERE)])


@pytest.mark.parametrize("sha256", ["", "0" * 63, "G" * 64, "0" * 64 + "\n", "../" + "0" * 61, None, 7])
def test_a_hash_that_is_none_is_refused(machine: Fetched, sha256: str) -> None:
    """With the file and the hash."""
    with pytest.raises(CannotServe, match=r"the file 'model\.bin' has the sha256 .*, which is none"):
        machine.fetch([File("model.bin", 1, sha256, ELSEWHERE)])


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b/c", "a"]])
def test_files_that_cannot_lie_beside_each_other_are_refused(machine: Fetched, paths: list[str]) -> None:
    """One file over another, or a file where a folder has to be."""
    with pytest.raises(CannotServe, match=r"'a' is (named 2 times|a file, and the folder of)"):
        machine.fetch([File(path, 1, "0" * 64, ELSEWHERE) for path in paths])


def test_what_the_variable_holds_is_checked_as_it_is_read() -> None:
    """Its own words for what is in it, and no address."""
    with pytest.raises(CannotServe, match=r"'\.\./x'") as raised:
        decode_files(encode_files([File("../x", 1, "0" * 64, f"{ELSEWHERE}?{SIGNATURE}")]))
    assert SIGNATURE not in str(raised.value)


def test_a_model_may_have_files_with_the_names_of_drafts(machine: Fetched) -> None:
    """And with the longest names that there are: drafts lie elsewhere."""
    model = {"model": b"the model", "model.part": b"a part of it", "x" * 255: b"long"}
    with mirror_of(model) as mirror:
        machine.fetch(mirror.files())
        assert machine.bodies == model
        mirror.asked.clear()
        (machine.directory / "model").unlink()
        machine.fetch(mirror.files())
        assert [path for path, _ in mirror.asked] == ["model"]
    assert machine.bodies == model
    assert [path.name for path in machine.directory.parent.iterdir()] == ["weights"]


def test_a_disk_that_does_not_take_the_weights_is_named(mirror: Mirror, machine: Fetched) -> None:
    """No traceback: the directory, what the system says, and what to look at."""
    machine.directory.write_text("a file, where the directory should be")
    with pytest.raises(CannotServe, match=r"weights cannot take the weights: File exists .*disk"):
        machine.fetch(mirror.files())


def test_nothing_is_written_through_a_link(mirror: Mirror, machine: Fetched, tmp_path: Path) -> None:
    """One that lies where weights belong is a stranger like any other."""
    (tmp_path / "elsewhere").mkdir()
    machine.directory.mkdir()
    (machine.directory / "onnx").symlink_to(tmp_path / "elsewhere")
    machine.fetch(mirror.files())
    assert machine.bodies == MODEL
    assert [*(tmp_path / "elsewhere").iterdir()] == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://192.0.2.1/x", f"http://[/x?{SIGNATURE}", "http://a b/"])
def test_an_address_that_is_none_is_refused_unquoted(machine: Fetched, url: str) -> None:
    """Only the web is asked, and the error does not quote what may be signed."""
    with pytest.raises(CannotServe, match=r"the address of model\.bin is") as raised:
        machine.fetch([File("model.bin", 1, "0" * 64, url)])
    assert url not in str(raised.value)


def test_weights_that_do_not_fit_are_refused_before_they_come(machine: Fetched) -> None:
    """With the room that there is and the room that they take."""
    huge = [File(f"model-{number}.bin", 5 << 40, "0" * 64, ELSEWHERE) for number in range(100)]
    with pytest.raises(CannotServe, match=r"room for [\d.]+ GiB and the weights take 512000\.0 GiB, beside 2 GiB"):
        machine.fetch(huge)


def signed(number: int) -> File:
    """As S3 signs it with temporary credentials: a token of a kilobyte that all share, and a signature of its own."""
    path = f"model-{number:05}-of-00163.safetensors"
    query = f"X-Amz-Credential=ASIA&X-Amz-Date=20261124T140000Z&X-Amz-Security-Token={'t0Ken' * 200}&X-Amz-Signature="
    url = f"https://bucket.example/models/lab/large/{'c' * 40}/{path}?{query}{secrets.token_hex(32)}"
    return File(path, 5 << 30, secrets.token_hex(32), url)


def test_hundreds_of_signed_addresses_fit_into_one_variable() -> None:
    """The largest open models have 163 files; they come out as they went in."""
    files = [signed(number) for number in range(500)]
    encoded = encode_files(files)
    assert len(encoded) < ONE_VARIABLE_BYTES
    assert decode_files(encoded) == files
    subprocess.run([sys.executable, "-c", ""], env={"SKYFERRY_FILES": encoded}, check=True)


def test_more_files_than_fit_are_refused_in_words() -> None:
    """Before Linux refuses to start anything with them."""
    with pytest.raises(CannotServe, match=r"2000 files take .* mirror the model in fewer"):
        encode_files([signed(number) for number in range(2000)])


@pytest.mark.parametrize("encoded", ["", "not base64!", "bm90IHBhY2tlZA==", "eJyrBQAAewB7"])
def test_files_that_are_none_are_refused_unquoted(encoded: str) -> None:
    """A variable that was cut off or mixed up is named, and not shown."""
    with pytest.raises(CannotServe, match="SKYFERRY_FILES is not what encode_files"):
        decode_files(encoded)


def test_only_known_braces_are_filled_in() -> None:
    """Engines take JSON on their command lines."""
    command = ["serve", "{weights_dir}/x", "--config={port}", '{"a": {"b": 1}}', "{other}"]
    assert fill_in(command, {"weights_dir": "/w", "port": "1"}) == [
        "serve",
        "/w/x",
        "--config=1",
        '{"a": {"b": 1}}',
        "{other}",
    ]


ENGINE = """
import json, os, stat, sys
cert, key, weights, port, *further = sys.argv[1:]
print(json.dumps({
    "env": {name: value for name, value in os.environ.items() if "SKYFERRY" in name},
    "cert": open(cert).read(), "key": open(key).read(), "key_mode": stat.S_IMODE(os.stat(key).st_mode),
    "weights": sorted(os.listdir(weights)), "port": int(port), "pid": os.getpid(),
    "further": further, "threads": os.environ.get("OMP_NUM_THREADS"),
}))
"""


@dataclass
class Run:
    returncode: int
    said: str
    engine: dict[str, object] | None
    pid: int


@pytest.fixture
def run(mirror: Mirror, tmp_path: Path) -> Callable[..., Run]:
    """The file alone, in a directory of its own, as it lies on a rented machine."""
    program = shutil.copy(node.__file__, tmp_path / "node.py")

    def start(**changes: str) -> Run:
        env = {
            "PATH": os.environ["PATH"],
            "SKYFERRY_HOME": str(tmp_path / "home"),
            "SKYFERRY_FILES": encode_files(mirror.files()),
            "SKYFERRY_CERTIFICATE": "the certificate",
            "SKYFERRY_PRIVATE_KEY": "the private key",
            "SKYFERRY_API_KEY": "the api key",
            "SKYFERRY_PORT": "0",
            **changes,
        }
        engine = [sys.executable, "-c", ENGINE, "{cert}", "{key}", "{weights_dir}", "{port}"]
        with subprocess.Popen(
            [sys.executable, "-I", program, "--", *engine],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            said, _ = process.communicate(timeout=30)
        lines = [line for line in said.splitlines() if line.startswith("{")]
        return Run(process.returncode, said, json.loads(lines[0]) if lines else None, process.pid)

    return start


def test_the_engine_takes_the_programs_place_once_all_is_there(run: Callable[..., Run], tmp_path: Path) -> None:
    """Same process, with weights, certificate, key and port at hand, and of the secrets only the API key."""
    ran = run()
    assert ran.engine is not None, ran.said
    assert ran.engine["pid"] == ran.pid
    assert ran.engine["weights"] == ["config.json", "empty.txt", "onnx"]
    assert (ran.engine["cert"], ran.engine["key"]) == ("the certificate", "the private key")
    assert ran.engine["key_mode"] == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert ran.engine["env"] == {
        "SKYFERRY_HOME": str(tmp_path / "home"),
        "SKYFERRY_API_KEY": "the api key",
        "SKYFERRY_PORT": "0",
    }


def test_the_port_is_announced(run: Callable[..., Run], tmp_path: Path) -> None:
    """A free one is printed, kept in a file and given to the engine; one that was asked for is taken."""
    ran = run()
    assert ran.engine is not None, ran.said
    assert f"skyferry: serving on port {ran.engine['port']}\n" in ran.said
    assert (tmp_path / "home/port").read_text() == f"{ran.engine['port']}\n"
    asked_for = run(SKYFERRY_PORT="23456")
    assert asked_for.engine is not None
    assert asked_for.engine["port"] == 23456


def test_what_a_release_says_of_its_engine_reaches_it_as_it_was_written(run: Callable[..., Run]) -> None:
    """Words at the end of its command line and variables: no shell reads them, and no name in braces is filled in."""
    hostile = "--chat-template=$(reboot) `id` 'a' \"b\" {port}\n--host 0.0.0.0"
    arguments, variables = json.dumps(["--seed=1", hostile]), json.dumps({"OMP_NUM_THREADS": "1; reboot"})
    ran = run(SKYFERRY_ENGINE_ARGUMENTS=arguments, SKYFERRY_ENGINE_ENVIRONMENT=variables)
    assert ran.engine is not None, ran.said
    assert (ran.engine["further"], ran.engine["threads"]) == (["--seed=1", hostile], "1; reboot")
    assert "ENGINE" not in str(ran.engine["env"])


@pytest.mark.parametrize("value", ["[1]", "{}", "no JSON", '"text"', "null", '[["a"]]'])
def test_words_for_the_engine_that_are_none_start_nothing(run: Callable[..., Run], value: str) -> None:
    """Whoever wrote them was no fleet."""
    ran = run(SKYFERRY_ENGINE_ARGUMENTS=value)
    assert (ran.returncode, ran.engine) == (1, None)
    assert ran.said.splitlines()[-1].startswith("skyferry: SKYFERRY_ENGINE_ARGUMENTS or SKYFERRY_ENGINE_ENVIRONMENT is")


def test_no_engine_starts_on_wrong_weights(run: Callable[..., Run], mirror: Mirror, tmp_path: Path) -> None:
    """The job ends with words; no port is announced, and no signature stands in the log."""
    files = encode_files(mirror.files())
    mirror.bodies["onnx/model.bin"] = bytes(8000)
    ran = run(SKYFERRY_FILES=files)
    assert (ran.returncode, ran.engine) == (1, None)
    assert "skyferry: onnx/model.bin came with the sha256" in ran.said
    assert "serving on port" not in ran.said
    assert "Signature" not in ran.said
    assert not (tmp_path / "home/port").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SKYFERRY_API_KEY", "", "the environment variable SKYFERRY_API_KEY is not set"),
        ("SKYFERRY_FILES", "mixed up", "SKYFERRY_FILES is not what encode_files"),
        ("SKYFERRY_PORT", "any", "SKYFERRY_PORT is 'any' and no port"),
    ],
)
def test_what_the_fleet_forgot_is_named(run: Callable[..., Run], name: str, value: str, words: str) -> None:
    """Without a key, addresses or a port nothing starts, and there is no traceback to read."""
    ran = run(**{name: value})
    assert (ran.returncode, ran.engine) == (1, None)
    assert ran.said.startswith(f"skyferry: {words}")


def test_nothing_of_the_secrets_is_printed(run: Callable[..., Run]) -> None:
    """Jobs' logs are kept and read by many."""
    said = run().said.partition("\n{")[0]
    for secret in (SIGNATURE, "the private key", "the api key"):
        assert secret not in said
