"""A language model of a few hundred kilobytes with random weights: it says nonsense, at once and for ever."""

import string
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import gguf
import httpx
import numpy as np
import psutil
import stamina

from blocks.local.processes import Daemon, free_port
from blocks.replica_tls import Identity

WIDTH = 64
HEADS = 4
LAYERS = 2
CONTEXT = 4096
CONTROL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LETTERS = ("▁", *string.ascii_lowercase)  # the tokenizer writes a space as ▁


def write_tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Write the model: a Llama that answers in lower-case letters, one token each, and never ends by itself."""
    random = np.random.default_rng(seed)
    tokens = CONTROL + BYTES + LETTERS

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, 0.1, (rows, columns)).astype(np.float32)

    head = matrix(len(tokens), WIDTH)
    # Rows of zeros are never the likeliest: no end of the text, and no bytes that are not UTF-8.
    head[: len(CONTROL) + len(BYTES)] = 0

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * len(CONTROL)
        + [gguf.TokenType.BYTE] * len(BYTES)
        + [gguf.TokenType.NORMAL] * len(LETTERS)
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")

    writer.add_tensor("token_embd.weight", matrix(len(tokens), WIDTH))
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}.{name}.weight", matrix(WIDTH, WIDTH))
        writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{block}.ffn_gate.weight", matrix(2 * WIDTH, WIDTH))
        writer.add_tensor(f"{block}.ffn_up.weight", matrix(2 * WIDTH, WIDTH))
        writer.add_tensor(f"{block}.ffn_down.weight", matrix(WIDTH, 2 * WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@cache
def tiny_gguf() -> bytes:
    """The model, for whoever needs no file."""
    with tempfile.TemporaryDirectory() as directory:
        return write_tiny_gguf(Path(directory) / "tiny.gguf").read_bytes()


@contextmanager
def tiny_replica(
    directory: Path,
    *,
    context_tokens: int = CONTEXT,
    parallel: int = 2,
    identity: Identity | None = None,
    api_key: str = "",
) -> Iterator[tuple[str, psutil.Process]]:
    """A ready llama.cpp replica of the model: its address and its process; by TLS where it has an identity."""
    weights = write_tiny_gguf(directory / "tiny.gguf")
    address = f"127.0.0.1:{(port := free_port())}"
    options = {"weights": weights, "port": port, "context-tokens": context_tokens, "parallel": parallel}
    if identity is not None:
        options |= {"certificate": directory / "replica.crt", "private-key": directory / "replica.key"}
        (directory / "replica.crt").write_text(identity.certificate)
        (directory / "replica.key").write_text(identity.private_key.get_secret_value())
    daemon = Daemon("replica", directory)
    process = daemon.start(
        [
            sys.executable,
            "-m",
            "blocks.on_machine.llama_cpp",
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        env={"SKYFERRY_API_KEY": api_key},
    )
    health = f"{'https' if identity else 'http'}://{address}/health"
    try:
        for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=None, timeout=20, wait_max=0.05):
            with attempt:
                # Who answers is for the tests to find out.
                httpx.get(health, verify=False).raise_for_status()  # noqa: S501 - see above
        yield address, process
    finally:
        daemon.stop(grace_seconds=1)
