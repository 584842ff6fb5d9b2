"""A replica as a process: what it does with a prompt that is too long, and when it is told to end."""

import json
import signal
import socket
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
import stamina
from xllamacpp import CommonParams  # pyright: ignore[reportAttributeAccessIssue] - of its compiled part

from blocks.engines.llama_cpp import LLAMA_CPP
from blocks.on_machine.llama_cpp import FLAGS, add_flags, apply_flags, find_weights, listen, lock_of
from blocks.replica_tls import SERVER_NAME, context_trusting, new_authority, new_identity
from tests.tiny_gguf import tiny_replica, write_tiny_gguf

pytestmark = pytest.mark.server


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    with tiny_replica(tmp_path, context_tokens=4096, parallel=1) as running:
        yield running


def ask(address: str, *, letters: int, max_tokens: int) -> httpx.Response:
    """A letter is a token, and two more mark the beginning."""
    body = {"messages": [{"role": "user", "content": "a" * letters}], "max_tokens": max_tokens, "temperature": 0}
    return httpx.post(f"http://{address}/v1/chat/completions", json=body, timeout=30)


def test_its_flags_are_those_that_releases_may_choose() -> None:
    """What the engine's file lets through, the program knows, and the other way round."""
    assert {*FLAGS, "threads"} == {*LLAMA_CPP.flags}


def test_flags_go_to_where_llama_cpp_has_them() -> None:
    """Over what each replica is started with; what is not chosen stays."""
    parser = ArgumentParser()
    add_flags(parser)
    chosen = ["--ubatch-size=8", "--poll=0", "--flash-attn=on", "--cache-type-k=q8_0", "--no-cache-prompt"]
    params = CommonParams()
    batch = params.n_batch
    apply_flags(params, parser.parse_args(chosen))
    assert (params.n_ubatch, params.cpuparams.poll, params.cache_prompt, params.n_batch) == (8, 0, False, batch)
    assert params.flash_attn_type == FLAGS["flash-attn"][1]["on"]
    assert params.cache_type_k == FLAGS["cache-type-k"][1]["q8_0"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--cache-type-k=q9"])


@pytest.mark.parametrize("parallel", [1, 3])
def test_each_request_has_the_whole_context(tmp_path: Path, parallel: int) -> None:
    """However many are answered at the same time, a prompt plus answer of the whole context fits, and ends with it."""
    with tiny_replica(tmp_path, context_tokens=512, parallel=parallel) as (address, _):
        answer = ask(address, letters=400, max_tokens=500).json()
    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_prompt_that_is_too_long_is_refused(tmp_path: Path, parallel: int) -> None:
    """HTTP 400 in OpenAI's form, with the numbers; never an answer to half of the prompt."""
    with tiny_replica(tmp_path, context_tokens=512, parallel=parallel) as (address, _):
        response = ask(address, letters=600, max_tokens=1)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 602, 512)


def test_a_context_between_two_steps_is_rounded_up(tmp_path: Path) -> None:
    """A request never has less than was ordered."""
    with tiny_replica(tmp_path, context_tokens=600, parallel=2) as (address, _):
        assert ask(address, letters=590, max_tokens=1).status_code == 200


def test_sigterm_ends_an_idle_replica(replica: tuple[str, psutil.Process]) -> None:
    """At once."""
    _, process = replica
    process.terminate()
    assert process.wait(timeout=2) == -signal.SIGTERM


def test_sigterm_ends_a_busy_replica(replica: tuple[str, psutil.Process]) -> None:
    """At once as well; the stream in flight breaks off and cannot be taken for a whole one."""
    address, process = replica
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 4000}
    with httpx.stream("POST", f"http://{address}/v1/chat/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        process.terminate()
        assert process.wait(timeout=2) == -signal.SIGTERM
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)


def test_sigterm_ends_a_busy_replica_that_speaks_tls(tmp_path: Path) -> None:
    """Its streams break off as well, and nobody got anything without the key."""
    now = datetime.now(UTC)
    authority = new_authority(now)
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 4000}
    with (
        tiny_replica(tmp_path, identity=new_identity(authority, now), api_key="k3y") as (address, process),
        httpx.Client(verify=context_trusting(authority.certificate)) as client,
    ):
        url, known = f"https://{address}/v1/chat/completions", {"sni_hostname": SERVER_NAME}
        assert client.post(url, json=body, extensions=known).status_code == 401
        headers = {"Authorization": "Bearer k3y"}
        with client.stream("POST", url, json=body, headers=headers, extensions=known) as response:
            lines = response.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["choices"]
            process.terminate()
            assert process.wait(timeout=2) == -signal.SIGTERM
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                list(lines)


def test_tls_keeps_no_answer_back() -> None:
    """What is written leaves at once; else many an answer waits 40 ms for the client to acknowledge the handshake."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_nothing_of_a_prompt_is_logged(tmp_path: Path) -> None:
    """Neither of one that was answered, nor of one that was too long, nor of one that was no JSON."""
    with tiny_replica(tmp_path, context_tokens=256) as (address, _):
        url = f"http://{address}/v1/chat/completions"
        for content in ("secret", "secret" * 100):
            httpx.post(url, json={"messages": [{"role": "user", "content": content}], "max_tokens": 2})
        assert httpx.post(url, content=b'{"messages": [{"role": "user", "content": "secret').status_code == 400
        # The engine logs in a thread of its own, and would not wait for it at its end.
        for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=10, wait_max=0.05):
            with attempt:
                log = (tmp_path / "replica.log").read_text()
                assert "exceeds the available context size" in log
    assert "secret" not in (tmp_path / "replica.log").read_text()


def test_a_directory_of_weights_has_to_leave_no_choice(tmp_path: Path) -> None:
    """A rented machine has a directory: the one GGUF file in it is served, and two are one too many."""
    (tmp_path / "README.md").write_text("# Tiny")
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert find_weights(tmp_path) == find_weights(weights) == weights
    (tmp_path / "other.gguf").touch()
    with pytest.raises(SystemExit, match=r"needs one GGUF file and .* has other\.gguf, tiny\.gguf; release"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"certificate": Path("c")}, "key", "go together"),
        ({"private_key": Path("k")}, "key", "go together"),
        ({"certificate": Path("c"), "private_key": Path("k")}, "", "SKYFERRY_API_KEY"),
        ({"certificate": Path("c"), "private_key": Path("k")}, None, "SKYFERRY_API_KEY"),
    ],
)
def test_half_a_lock_is_refused(given: dict[str, Path], key: str | None, words: str) -> None:
    """TLS without a key would answer anybody, and a key without TLS would be read by anybody."""
    with pytest.raises(SystemExit, match=words):
        lock_of(Namespace(**{"certificate": None, "private_key": None, **given}), key)


def test_a_taken_port_ends_the_replica(replica: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """Two never listen on one port, so an address is one replica's."""
    address, _ = replica
    weights = write_tiny_gguf(tmp_path / "other.gguf")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "blocks.on_machine.llama_cpp", "--weights", weights),
            *("--port", address.partition(":")[2], "--context-tokens", "512", "--parallel", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode != 0
    assert "couldn't bind" in ended.stdout + ended.stderr
