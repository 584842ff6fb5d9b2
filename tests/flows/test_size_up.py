"""What a task makes of a model's own files, whoever wrote them."""

import json
from collections.abc import Iterator

import pytest

from blocks.errors import Refused, Unavailable
from blocks.ports.fleet import EngineSettings
from flows.policy.sizing.sizing import Need
from flows.tasks.mirror import LARGEST_TEXT_BYTES, size_up

GIB = 1 << 30
LLAMA: dict[str, object] = {
    "model_type": "llama", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_size": 4096, "intermediate_size": 14_336, "vocab_size": 128_256,
}  # fmt: skip


def sized(config: bytes | dict[str, object] = b"{}", index: bytes = b"", more: bytes = b"", cut: int = 0) -> Need:
    """Of a model with these files; `cut` bytes of config.json do not come."""
    bodies = {
        "config.json": config if isinstance(config, bytes) else json.dumps(config).encode(),
        "model.safetensors.index.json": index,
        "hf_quant_config.json": more,
    }
    files = {path: len(body) for path, body in bodies.items() if body} | {"model.safetensors": GIB}

    def read(path: str) -> Iterator[bytes]:
        yield bodies[path][: len(bodies[path]) - cut]

    return size_up.fn("maker/model", files, read, EngineSettings(1024, 1))


@pytest.mark.parametrize(
    "config",
    [b"<!doctype html>", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'"config"', b"[1]", b"9" * 5000],
)
def test_a_config_that_is_none_is_refused(config: bytes) -> None:
    """A page of HTML, a well of brackets, another alphabet, and JSON that is no object."""
    with pytest.raises(Refused, match=r"config\.json of maker/model is no JSON"):
        sized(config)


@pytest.mark.parametrize("total", [b"1e999", b"NaN", b"-Infinity", b'"12"', b"null", b"true", b"[]", b"-5"])
def test_an_index_that_counts_nonsense_says_nothing(total: bytes) -> None:
    """Then the files count."""
    need = sized(LLAMA, index=b'{"metadata": {"total_size": ' + total + b"}}")
    assert need.weights_bytes == GIB


def test_a_config_of_gigabytes_is_not_read() -> None:
    """Refused by its size, before a byte of it."""

    def read(path: str) -> Iterator[bytes]:
        raise AssertionError(path)

    files = {"config.json": LARGEST_TEXT_BYTES + 1, "model.safetensors": GIB}
    with pytest.raises(Refused, match=r"config\.json of maker/model has 67108865 bytes"):
        size_up.fn("maker/model", files, read, EngineSettings(1024, 1))


def test_a_config_that_breaks_off_is_asked_for_again() -> None:
    """Half of it says nothing of the model."""
    with pytest.raises(Unavailable, match="broke off"):
        sized(LLAMA, cut=5)


def test_how_a_model_is_quantised_may_stand_beside_its_config() -> None:
    """In a file of its own, as older versions of ModelOpt have it; config.json goes before it."""
    more = json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "group_size": 64}})
    assert sized(LLAMA, more=more.encode()).arithmetic[0].endswith("(modelopt)")
    awq = LLAMA | {"quantization_config": {"quant_method": "awq", "group_size": 128}}
    assert sized(awq, more=more.encode()).arithmetic[0].endswith("(awq)")


@pytest.mark.parametrize(("said", "longest"), [(b'{"max_seq_length": 256}', 256), (b'{"max_seq_length": null}', 512)])
def test_sentences_may_be_shorter_than_the_positions(said: bytes, longest: int) -> None:
    """By a file of sentence-transformers, which vLLM reads: it would not start with a longer context."""
    bert: dict[str, object] = {
        "architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": 6, "num_attention_heads": 12,
        "hidden_size": 384, "intermediate_size": 1536, "max_position_embeddings": 512,
    }  # fmt: skip
    bodies = {"config.json": json.dumps(bert).encode(), "sentence_bert_config.json": said}
    files = {path: len(body) for path, body in bodies.items()} | {"model.safetensors": GIB}

    def need(context: int) -> Need:
        return size_up.fn("maker/m", files, lambda path: iter([bodies[path]]), EngineSettings(context, 1, "embedding"))

    assert need(longest).kv_bytes == 0
    with pytest.raises(Refused, match=f"made for {longest} tokens and {longest + 1} are asked for"):
        need(longest + 1)
