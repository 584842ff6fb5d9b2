"""The engines' SkyPilot tasks: read by SkyPilot, and run as its jobs are run, on this machine."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import stamina
import yaml

from blocks.engines.openai import OpenAIEngine
from blocks.local.processes import MARK, free_port
from blocks.on_machine.node import File, encode_files
from blocks.ports.fleet import ModelKind, Replica
from blocks.replica_tls import new_authority, new_identity, release_key
from blocks.skypilot.sdk import skypilot
from tests.servers import canned_server
from tests.tiny_gguf import tiny_bert, write_tiny_gguf

ROOT = Path(__file__).parents[2]
ENGINES = ROOT / "deployments/engines"
NOW = datetime.now(UTC)
AUTHORITY = new_authority(NOW)
KEY = release_key(AUTHORITY, "1a")


def variables(files: list[File]) -> tuple[dict[str, str], dict[str, str]]:
    """What a fleet fills in: settings and secrets."""
    identity = new_identity(AUTHORITY, NOW)
    envs = {"SKYFERRY_SERVICE": "chat", "SKYFERRY_CONTEXT_TOKENS": "512", "SKYFERRY_PARALLEL_REQUESTS": "2"}
    secrets = {
        "SKYFERRY_FILES": encode_files(files),
        "SKYFERRY_CERTIFICATE": identity.certificate,
        "SKYFERRY_PRIVATE_KEY": identity.private_key.get_secret_value(),
        "SKYFERRY_API_KEY": KEY,
    }
    return envs, secrets


def read(engine: str) -> dict[str, Any]:
    config = yaml.safe_load((ENGINES / f"{engine}.yaml").read_text())
    config["file_mounts"] = {there: str(ROOT / here) for there, here in config["file_mounts"].items()}
    return config


@pytest.mark.parametrize("engine", ["vllm", "llama_cpp"])
def test_skypilot_takes_the_task(engine: str) -> None:
    """With what a fleet fills in it is whole, every file that it sends is there, and its secrets are secrets."""
    envs, secrets = variables([])
    task = skypilot().Task.from_yaml_config(read(engine), list(envs.items()), list(secrets.items()))
    task.validate()
    task.expand_and_validate_file_mounts()
    assert set(task.secrets) == set(secrets)
    assert not set(task.envs) & set(secrets)
    assert all(value is not None for value in task.envs.values())


@pytest.mark.parametrize("engine", ["vllm", "llama_cpp"])
def test_a_setting_that_was_forgotten_is_named(engine: str) -> None:
    """SkyPilot refuses the task before anything is rented."""
    with pytest.raises(ValueError, match="'SKYFERRY_SERVICE' is None"):
        skypilot().Task.from_yaml_config(read(engine), [], [])


@contextmanager
def job(engine: str, home: Path, files: list[File], **changes: str) -> Iterator[subprocess.Popen[str]]:
    """The task's setup and run, with its files in a home of its own."""
    config = read(engine)
    for there, here in config["file_mounts"].items():
        target = home / there.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here, target)
    envs, secrets = variables(files)
    # By its mark it ends with this process, however that ends.
    machine = {"PATH": os.environ["PATH"], "HOME": str(home), MARK: os.environ[MARK]}
    env = {**machine, **config["envs"], **envs, **secrets, **changes}
    if engine == "llama_cpp":
        subprocess.run(["bash", "-c", config["setup"]], env=env, check=True)
    with subprocess.Popen(
        ["bash", "-c", config["run"]], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def mirrored(body: bytes, path: str) -> Iterator[list[File]]:
    with canned_server(200, body=body) as server:
        yield [File(path, len(body), hashlib.sha256(body).hexdigest(), f"http://{server.address}/{path}?signed")]


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("chat", "--runner generate"),
        ("completion", "--runner generate"),
        ("embedding", "--runner pooling --convert embed"),
        ("rerank", "--runner pooling --convert classify"),
    ],
)
def test_vllm_is_started_for_its_kind(tmp_path: Path, kind: str, flags: str) -> None:
    """Whatever it would take the model for by itself."""
    (program := tmp_path / "skyferry/venv/bin/vllm").parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    with mirrored(b"{}", "config.json") as files, job("vllm", tmp_path, files, SKYFERRY_KIND=kind) as running:
        said = running.communicate(timeout=30)[0]
    assert f" {flags} --host 0.0.0.0" in said


@pytest.mark.server
@pytest.mark.parametrize("kind", ["embedding", "rerank"])
def test_llama_cpp_is_started_for_its_kind(tmp_path: Path, kind: ModelKind) -> None:
    """From the task to a vector, or a ranking, by TLS."""
    weights, port = tiny_bert(ranks=kind == "rerank"), str(free_port())
    python = {"SKYFERRY_PYTHON": sys.executable, "SKYFERRY_PORT": port, "SKYFERRY_KIND": kind}
    with mirrored(weights, "tiny.gguf") as files, job("llama_cpp", tmp_path / "home", files, **python):
        replica = Replica("search-1a-0", "search", "1a", "here", f"127.0.0.1:{port}", is_tls=True)
        engine = OpenAIEngine(key_of=lambda _: KEY, replica_ca=AUTHORITY.certificate)
        for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=30, wait_max=0.1):
            with attempt:
                assert engine.is_healthy(replica)
        assert engine.complete(replica, kind)


@pytest.mark.server
def test_llama_cpp_serves_what_it_has_checked(tmp_path: Path) -> None:
    """From the addresses of a mirror to a completion by TLS with the release's key; SIGTERM ends the engine itself."""
    weights = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    port = str(free_port())
    python = {"SKYFERRY_PYTHON": sys.executable, "SKYFERRY_PORT": port}
    python["SKYFERRY_ENGINE_ARGUMENTS"] = '["--ubatch-size=8"]'  # as a release may have chosen
    with mirrored(weights, "tiny.gguf") as files, job("llama_cpp", tmp_path / "home", files, **python) as running:
        replica = Replica("chat-1a-0", "chat", "1a", "here", f"127.0.0.1:{port}", is_tls=True)
        engine = OpenAIEngine(key_of=lambda _: KEY, replica_ca=AUTHORITY.certificate)
        for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=30, wait_max=0.1):
            with attempt:
                assert engine.is_healthy(replica)
        assert engine.complete(replica)
        load = engine.load(replica)
        assert load is not None
        assert load.in_flight == 0
        command_line = Path(f"/proc/{running.pid}/cmdline").read_text()
        assert "llama_cpp.py" in command_line
        assert "--ubatch-size=8" in command_line
        assert KEY not in command_line
        running.terminate()
        assert running.wait(timeout=5) == -signal.SIGTERM
        said = running.stdout.read() if running.stdout else ""
    assert f"skyferry: serving on port {port}\n" in said
    assert not [secret for secret in ("signed", KEY, "PRIVATE KEY") if secret in said]


@pytest.mark.server
def test_llama_cpp_does_not_serve_what_is_wrong(tmp_path: Path) -> None:
    """The job ends, with words, before the engine has begun."""
    weights = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    with mirrored(weights, "tiny.gguf") as (file,):
        wrong = [file._replace(sha256="0" * 64)]
        with job("llama_cpp", tmp_path / "home", wrong, SKYFERRY_PYTHON=sys.executable) as running:
            said, _ = running.communicate(timeout=30)
    assert running.returncode == 1
    assert "skyferry: tiny.gguf came with the sha256" in said
    assert "is served at" not in said


VLLM = """#!{python}
import json, os, sys
sys.path.insert(0, os.environ["PYTHONPATH"])
import key_guard
env = dict(item for item in os.environ.items() if item[0].startswith("VLLM_"))
print(json.dumps([sys.argv[1:], env, key_guard.KeyGuard.__name__]))
"""


@pytest.mark.server
def test_vllm_is_told_all_but_the_key_on_its_command_line(tmp_path: Path) -> None:
    """A stand-in writes down what it is started with; vLLM 0.33.0 knows each of these."""
    vllm = tmp_path / "home/skyferry/venv/bin/vllm"
    vllm.parent.mkdir(parents=True)
    vllm.write_text(VLLM.format(python=sys.executable))
    vllm.chmod(0o700)
    changes = {"SKYFERRY_PYTHON": sys.executable, "SKYFERRY_PORT": "18443", "SKYFERRY_ACCELERATORS": "4"}
    with (
        mirrored(b"weights", "model.safetensors") as files,
        job("vllm", tmp_path / "home", files, **changes) as running,
    ):
        said, _ = running.communicate(timeout=30)
    arguments, env, guard = json.loads(said.splitlines()[-1])
    home = tmp_path / "home/skyferry"
    assert arguments[:2] == ["serve", str(home / "weights")]
    options = dict(zip(arguments[2:-2:2], arguments[3:-2:2], strict=True))
    assert options == {
        "--runner": "generate",
        "--host": "0.0.0.0",  # noqa: S104 - the gateway is elsewhere
        "--port": "18443",
        "--ssl-certfile": str(home / "replica.crt"),
        "--ssl-keyfile": str(home / "replica.key"),
        "--middleware": "key_guard.KeyGuard",
        "--served-model-name": "chat",
        "--max-model-len": "512",
        "--max-num-seqs": "2",
        "--tensor-parallel-size": "4",
        "--shutdown-timeout": "60",
        # No user has the machine fetch what only it can reach.
        "--allowed-media-domains": "none.invalid",
    }
    assert arguments[-2:] == ["--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    assert guard == "KeyGuard"
    assert env == {
        "VLLM_API_KEY": KEY,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_MAX_N_SEQUENCES": "16",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }


def locked(file: Path) -> dict[str, int]:
    """How many hashes each requirement has, by `name==version`."""
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in file.read_text().splitlines() if line[:1] != "#"))
    return {entry.split(" ")[0]: entry.count("--hash=sha256:") for entry in entries if entry}


@pytest.mark.parametrize("engine", ["vllm", "llama_cpp"])
def test_machines_install_by_hash_alone(engine: str) -> None:
    """What the task installs is in its lock, each package with its hashes, and the lock sends nobody anywhere."""
    setup = read(engine)["setup"]
    (installing,) = (line for line in setup.splitlines() if "pip install" in line)
    assert installing.endswith('--require-hashes -r "$HOME/skyferry/requirements.txt"')
    assert read(engine)["file_mounts"]["~/skyferry/requirements.txt"] == str(ENGINES / f"{engine}.txt")
    lock = locked(ENGINES / f"{engine}.txt")
    assert (ENGINES / f"{engine}.in").read_text().strip() in lock
    assert all(lock.values())
    assert not re.search(r"://|--(extra-)?index|--find-links", (ENGINES / f"{engine}.txt").read_text())


def test_llama_cpp_is_one_version_everywhere() -> None:
    """Rented machines run what this project's own tests ran."""
    (wanted,) = locked(ENGINES / "llama_cpp.txt").items()
    assert wanted in locked(ROOT / "requirements.lock").items()


def test_azurite_is_installed_by_hash_alone() -> None:
    """In CI, from a lock that names no host."""
    text = (ROOT / ".ci/azurite/package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)
    assert "resolved" not in text
    assert "npm ci" in (ROOT / ".ci/run").read_text()
    assert "npm install" not in (ROOT / ".ci/run").read_text()
