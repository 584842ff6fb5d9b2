"""Models of a few hundred kilobytes with random weights: one says nonsense for ever, others embed and rank by it."""

import string
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import psutil
import stamina

from blocks.local.processes import Daemon, free_port
from blocks.ports.fleet import POOLING, ModelKind
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


ENCODER_CONTEXT = 512
ENCODER_CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tiny_bert(
    path: Path,
    *,
    ranks: bool = False,
    width: int = WIDTH,
    seed: int = 0,
    gain: float = 1.0,
    pooling: gguf.PoolingType | None = None,
) -> Path:
    """Write an encoder, of a letter each: a BERT that embeds by the mean of its tokens, or ranks.

    With a `gain` of 0 all that it computes comes to nothing. Without a `pooling` the file says the right one.
    """
    random = np.random.default_rng(seed)
    # The tokenizer marks where a word begins.
    tokens = (*ENCODER_CONTROL, *(f"▁{letter}" for letter in string.ascii_lowercase), *string.ascii_lowercase)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, 0.3, (rows, columns)).astype(np.float32)

    def zeros(columns: int) -> np.ndarray:
        return np.zeros(columns, np.float32)

    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(ENCODER_CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    right = gguf.PoolingType.RANK if ranks else gguf.PoolingType.MEAN
    writer.add_pooling_type(right if pooling is None else pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    control = len(ENCODER_CONTROL)
    writer.add_token_types([gguf.TokenType.CONTROL] * control + [gguf.TokenType.NORMAL] * (len(tokens) - control))
    writer.add_token_type_count(2)
    for name, token in (("pad", 0), ("unk", 1), ("bos", 2), ("sep", 3), ("eos", 3), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(token)

    writer.add_tensor("token_embd.weight", matrix(len(tokens), width))
    writer.add_tensor("token_types.weight", matrix(2, width))
    writer.add_tensor("position_embd.weight", matrix(ENCODER_CONTEXT, width))
    writer.add_tensor("token_embd_norm.weight", np.ones(width, np.float32))
    writer.add_tensor("token_embd_norm.bias", zeros(width))
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}.{name}.weight", matrix(width, width))
            writer.add_tensor(f"{block}.{name}.bias", zeros(width))
        writer.add_tensor(f"{block}.ffn_up.weight", matrix(2 * width, width))
        writer.add_tensor(f"{block}.ffn_up.bias", zeros(2 * width))
        writer.add_tensor(f"{block}.ffn_down.weight", matrix(width, 2 * width))
        writer.add_tensor(f"{block}.ffn_down.bias", zeros(width))
        for name in ("attn_output_norm", "layer_output_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.full(width, gain, np.float32))
            writer.add_tensor(f"{block}.{name}.bias", zeros(width))
    if ranks:
        writer.add_tensor("cls.weight", matrix(width, width))
        writer.add_tensor("cls.bias", zeros(width))
        writer.add_tensor("cls.output.weight", matrix(1, width))
        writer.add_tensor("cls.output.bias", zeros(1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@cache
def tiny_bert(**options: Any) -> bytes:
    """An encoder, for whoever needs no file."""
    with tempfile.TemporaryDirectory() as directory:
        return write_tiny_bert(Path(directory) / "tiny.gguf", **options).read_bytes()


@cache
def tiny_gguf() -> bytes:
    """The model, for whoever needs no file."""
    with tempfile.TemporaryDirectory() as directory:
        return write_tiny_gguf(Path(directory) / "tiny.gguf").read_bytes()


@contextmanager
def tiny_replica(
    directory: Path,
    *,
    context_tokens: int | None = None,
    parallel: int = 2,
    identity: Identity | None = None,
    api_key: str = "",
    kind: ModelKind = "chat",
    **of_bert: Any,
) -> Iterator[tuple[str, psutil.Process]]:
    """A ready llama.cpp replica of a model of that kind: its address and its process; by TLS where it has an identity.

    Without a context of its own, it has the longest of its model.
    """
    weights, longest = directory / "tiny.gguf", CONTEXT
    if kind in POOLING:
        write_tiny_bert(weights, ranks=kind == "rerank", **of_bert)
        longest = ENCODER_CONTEXT
    else:
        write_tiny_gguf(weights)
    address = f"127.0.0.1:{(port := free_port())}"
    context_tokens = context_tokens or longest
    options = {"weights": weights, "port": port, "context-tokens": context_tokens, "parallel": parallel, "kind": kind}
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
