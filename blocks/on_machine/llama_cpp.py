"""One replica as a process of its own: llama.cpp's OpenAI-compatible server.

Fleets on other machines send this file there alone: it needs the standard library and xllamacpp, nothing of Skyferry.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from operator import attrgetter
from pathlib import Path
from typing import Any

# The names come out of its compiled part, which says nothing to a type checker.
from xllamacpp import CommonParams, Server, ggml_type, llama_flash_attn_type, llama_pooling_type  # pyright: ignore[reportAttributeAccessIssue] - see above

CONTEXT_STEP = 256
"""llama.cpp rounds the context up to this many tokens."""
HTTP_THREADS = 2
"""To begin with: further threads come as requests wait, so that the health check need not."""
ERRORS = 1
"""llama.cpp's verbosity: its warnings quote from requests that it cannot parse."""


KINDS = ("chat", "completion", "embedding", "rerank")
"""What a model may be asked for; the first two are started alike."""

UNIX_PATH_BYTES = 107
"""What Linux lets the path of a unix socket have."""


FLASH_ATTENTION = {
    "on": llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "auto": llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
}
CACHE_TYPES = {
    name: getattr(ggml_type, f"GGML_TYPE_{name.upper()}")
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}
FLAGS: dict[str, tuple[str, Any]] = {
    "batch-size": ("n_batch", int),
    "ubatch-size": ("n_ubatch", int),
    "threads-batch": ("cpuparams_batch.n_threads", int),
    "poll": ("cpuparams.poll", int),
    "predict": ("n_predict", int),
    "keep": ("n_keep", int),
    "seed": ("sampling.seed", int),
    "n-gpu-layers": ("n_gpu_layers", int),
    "main-gpu": ("main_gpu", int),
    "cache-ram": ("cache_ram_mib", int),
    "cache-reuse": ("n_cache_reuse", int),
    "ctx-checkpoints": ("n_ctx_checkpoints", int),
    "rope-freq-base": ("rope_freq_base", float),
    "rope-freq-scale": ("rope_freq_scale", float),
    "slot-prompt-similarity": ("slot_prompt_similarity", float),
    "chat-template": ("chat_template", str),
    "flash-attn": ("flash_attn_type", FLASH_ATTENTION),
    "cache-type-k": ("cache_type_k", CACHE_TYPES),
    "cache-type-v": ("cache_type_v", CACHE_TYPES),
    "cache-prompt": ("cache_prompt", bool),
    "cont-batching": ("cont_batching", bool),
    "swa-full": ("swa_full", bool),
    "warmup": ("warmup", bool),
    "check-tensors": ("check_tensors", bool),
}
"""What may be chosen, by llama.cpp's own names for it: where it stands in CommonParams, and what it may be. True and
false are the flag, and `--no-` and the flag; one of several is a dictionary."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """To be told whatever is chosen; what is not is None."""
    for name, (_, kind) in FLAGS.items():
        if kind is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
        elif isinstance(kind, dict):
            parser.add_argument(f"--{name}", choices=[*kind])
        else:
            parser.add_argument(f"--{name}", type=kind)


def apply_flags(params: CommonParams, given: argparse.Namespace) -> None:
    """Over what every replica is started with."""
    for name, (where, kind) in FLAGS.items():
        if (value := getattr(given, name.replace("-", "_"))) is not None:
            part, _, attribute = where.rpartition(".")
            setattr(
                attrgetter(part)(params) if part else params,
                attribute,
                kind[value] if isinstance(kind, dict) else value,
            )


@dataclass(frozen=True)
class Endpoint:
    """Where llama.cpp's own server listens, and the key that it asks for."""

    host: str
    """An address, or the path of a unix socket, which ends in .sock."""
    port: int
    api_key: str | None = None

    def connect(self) -> HTTPConnection:
        return UnixConnection(self.host) if self.host.endswith(".sock") else HTTPConnection(self.host, self.port)


class UnixConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def settings(
    weights: Path, door: Endpoint, *, context_tokens: int, parallel: int, alias: str, threads: int, kind: str = "chat"
) -> CommonParams:
    """What llama.cpp is started with: a request that does not fit its context is refused, never a cut prompt.

    With HTTP 400 where words are generated, and by encoders with HTTP 500: to them it is longer than one step.
    """
    params = CommonParams()
    params.model.path = str(weights)
    params.model_alias = {alias}
    params.hostnames = [door.host]
    params.port = door.port
    params.api_keys = [door.api_key] if door.api_key else []
    # The context is divided evenly among the parallel requests, so that each has its own whole one.
    context = -(-context_tokens // CONTEXT_STEP) * CONTEXT_STEP
    params.n_ctx = context * parallel
    params.n_parallel = parallel
    params.kv_unified = False
    params.ctx_shift = False
    params.fit_params = False  # the context that was ordered or none
    params.cache_ram_mib = 128  # for prompts that begin alike; without a limit it may take 8 GiB
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = HTTP_THREADS
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it shows what users wrote
    params.ui = False
    params.verbosity = ERRORS
    if kind in {"embedding", "rerank"}:
        params.embedding = True
        # What is pooled is computed in one step: by its default of 512 tokens, longer inputs get HTTP 500.
        params.n_batch = params.n_ubatch = context
    if kind == "rerank":
        params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    return params


def context_offered(door: Endpoint) -> int:
    """What one request may have: never more tokens than the model was trained for."""
    with closing(door.connect()) as connection:
        connection.request("GET", "/props", headers={"Authorization": f"Bearer {door.api_key}"} if door.api_key else {})
        return json.load(connection.getresponse())["default_generation_settings"]["n_ctx"]


def find_weights(given: Path) -> Path:
    """The file itself, or the one GGUF file in that directory."""
    if not given.is_dir():
        return given
    choices = sorted(given.rglob("*.gguf"))
    if len(choices) != 1:
        names = ", ".join(path.name for path in choices)
        sys.exit(f"llama.cpp needs one GGUF file and {given} has {names or 'none'}; release a model that has one")
    return choices[0]


def lock_of(given: argparse.Namespace, api_key: str | None) -> ssl.SSLContext | None:
    """How the server proves who it is; None where it speaks plain HTTP."""
    if given.certificate is None and given.private_key is None:
        return None
    if given.certificate is None or given.private_key is None:
        sys.exit("a certificate and its private key go together; give both --certificate and --private-key, or neither")
    if not api_key:
        sys.exit("a server that speaks TLS asks for a key; set the environment variable SKYFERRY_API_KEY")
    lock = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lock.load_cert_chain(given.certificate, given.private_key)
    return lock


def listen(host: str, port: int) -> socket.socket:
    """For TLS, which asyncio ends."""
    listener = socket.create_server((host, port))
    # Inherited by each connection. asyncio does so for its own sockets only, and without it many an answer is 40 ms
    # late: it waits for the client to acknowledge the session tickets of TLS 1.3.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def answer_by_tls(listener: socket.socket, lock: ssl.SSLContext, inside: str) -> None:
    """Pass each connection on to llama.cpp's unix socket, for ever: the wheel of xllamacpp is built without TLS."""

    async def pass_on(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(inside)
        await asyncio.gather(_copy(client, to_server), _copy(server, to_client))

    await (await asyncio.start_server(pass_on, sock=listener, ssl=lock)).serve_forever()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Until either breaks off; the other then learns of it, so that nothing is computed for a user who left."""
    try:
        while chunk := await source.read(1 << 16):
            target.write(chunk)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


def main() -> None:
    """Serve until SIGTERM, which ends the process at once: whoever sends it has drained the replica first."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--kind", choices=KINDS, default="chat")
    parser.add_argument("--alias", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--private-key", type=Path)
    add_flags(parser)
    given = parser.parse_args()
    api_key = os.environ.get("SKYFERRY_API_KEY") or None
    lock = lock_of(given, api_key)
    # The system's own way of ending: Python's would wait for the server's threads, which with a request in flight
    # never end. A client sees its stream break off, never one that looks complete.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if lock is None:
        _kept = start(given, Endpoint(given.host, given.port, api_key))
        signal.pause()
    else:
        inside = given.private_key.absolute().with_name("llama.sock")
        if len(os.fsencode(inside)) > UNIX_PATH_BYTES:
            sys.exit(f"{inside} is too long a path for a socket; keep the private key in a directory of a shorter one")
        inside.unlink(missing_ok=True)
        # Taken before the weights are read: where another has the port, this ends at once.
        listener = listen(given.host, given.port)
        _kept = start(given, Endpoint(str(inside), given.port, api_key))
        asyncio.run(answer_by_tls(listener, lock, str(inside)))


def start(given: argparse.Namespace, door: Endpoint) -> Server:
    """It serves for as long as it is kept; the process ends where it cannot give each request its whole context."""
    weights = find_weights(given.weights)
    params = settings(
        weights,
        door,
        context_tokens=given.context_tokens,
        parallel=given.parallel,
        alias=given.alias,
        threads=given.threads,
        kind=given.kind,
    )
    apply_flags(params, given)
    try:
        server = Server(params)
    except RuntimeError as error:
        sys.exit(f"llama.cpp did not start ({error}); what it said stands above")
    if (offered := context_offered(door)) < given.context_tokens:
        sys.exit(
            f"{weights.name} was trained for {offered} tokens and {given.context_tokens} were asked for; "
            f"choose a context of {offered} tokens or fewer"
        )
    print(f"{weights.name} is served at {server.listening_address}", flush=True)  # noqa: T201 - the log is stdout
    return server


if __name__ == "__main__":
    main()
