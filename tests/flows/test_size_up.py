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


def sized(
    config: bytes | dict[str, object] = b"{}",
    index: bytes = b"",
    more: bytes = b"",
    cut: int = 0,
    files: dict[str, int] | None = None,
    params: dict[str, object] | None = None,
    tokens: int = 1024,
) -> Need:
    """Of a model with these files; `cut` bytes of config.json do not come."""
    bodies = {
        "params.json": b"" if params is None else json.dumps(params).encode(),
        "config.json": config if isinstance(config, bytes) else json.dumps(config).encode(),
        "model.safetensors.index.json": index,
        "hf_quant_config.json": more,
    }
    sizes = {path: len(body) for path, body in bodies.items() if body} | (files or {"model.safetensors": GIB})

    def read(path: str) -> Iterator[bytes]:
        yield bodies[path][: len(bodies[path]) - cut]

    return size_up.fn("maker/model", sizes, read, EngineSettings(tokens, 1))


@pytest.mark.parametrize(
    "config",
    [
        b"<!doctype html>",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'"config"',
        b"[1]",
        b"9" * 5000,
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ],
)
def test_a_config_that_is_none_is_refused(config: bytes) -> None:
    """A page of HTML, a well of brackets, alphabets and marks that engines do not read, and JSON that is no object."""
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


def test_a_model_that_two_engines_serve_by_other_files_is_refused() -> None:
    """Of which the GGUF file may be a quarter of what vLLM loads."""
    with pytest.raises(Refused, match=r"q4\.gguf, which llama\.cpp serves, and model\.safetensors, which vLLM serves"):
        sized(LLAMA, files={"model.safetensors": GIB, "q4.gguf": GIB // 4})


def test_the_index_names_the_files_that_are_loaded() -> None:
    """And no others; what lies beside them may be older, or of another engine."""
    index = json.dumps({"weight_map": {"a": "model.safetensors"}}).encode()
    assert sized(LLAMA, index, files={"model.safetensors": GIB, "old.safetensors": 9 * GIB}).weights_bytes == GIB
    assert sized(LLAMA, b'{"weight_map": ["x"]}').weights_bytes == GIB


PIXTRAL: dict[str, object] = {
    "dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 14_336, "n_heads": 32, "n_kv_heads": 8,
    "vocab_size": 131_072, "rope_theta": 1e9, "norm_eps": 1e-5,
    "vision_encoder": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}  # fmt: skip
A_TOKEN = 40 * 2 * 8 * 128 * 2
OWN = {"consolidated.safetensors": 24 * GIB}
LARGE_3: dict[str, object] = PIXTRAL | {
    "n_heads": 128, "n_kv_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "moe": {"num_experts": 128, "num_experts_per_tok": 4, "num_shared_experts": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("params", "kv_bytes"),
    [
        (PIXTRAL, A_TOKEN * 32_768),
        (PIXTRAL | {"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, A_TOKEN * 32_768),
        (PIXTRAL | {"sliding_window": 4096}, A_TOKEN * (4096 + 2 * 8192 + 16)),
        # One layer of four sees all: ten, and 30 with the window.
        (
            PIXTRAL | {"sliding_window": [None, 4096, 4096, 4096]},
            A_TOKEN * (32_768 + 3 * (4096 + 2 * 8192 + 16)) // 4,
        ),
        (LARGE_3, 40 * (512 + 64) * 2 * 32_768),
    ],
)
def test_mistrals_own_form_is_sized_by_its_own_words(params: dict[str, object], kv_bytes: int) -> None:
    """VLLM reads params.json before config.json, which may be missing or say anything."""
    for config in (b"", LLAMA | {"num_hidden_layers": 1, "max_position_embeddings": 32_768}):
        need = sized(config, params=params, files=OWN, tokens=32_768)
        assert need.kv_bytes == kv_bytes
        assert need.weights_bytes == 24 * GIB


def test_without_weights_in_mistrals_form_its_words_count_for_nothing() -> None:
    """Llama's own releases have a params.json too."""
    assert sized(LLAMA, params=PIXTRAL).layers == 32
    with pytest.raises(Refused, match=r"has no config\.json"):
        sized(b"", params=PIXTRAL)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}, "fp8"),
        ({"quantization": {"quant_method": "compressed_tensors"}}, "compressed-tensors"),
    ],
)
def test_mistrals_words_for_quantised_weights_are_read(more: dict[str, object], words: str) -> None:
    """Each in the method's own name."""
    assert f"({words})" in sized(b"", params=PIXTRAL | more, files=OWN).arithmetic[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"quantization": {"qformat_weight": "int3"}}, "which vLLM does not serve"),
        ({"quantization": "fp8"}, "which vLLM does not serve"),
        ({"sliding_window": [4096, 8192]}, "windows of 4096, 8192 tokens"),
        ({"sliding_window": ["4096", None]}, "sliding_window is '4096'"),
        ({"dim": "5120"}, "hidden_size is '5120'"),
        ({"n_layers": None}, "says nothing of num_hidden_layers"),
        ({"max_position_embeddings": 512}, "made for 512 tokens"),
    ],
)
def test_mistrals_odd_words_are_refused(more: dict[str, object], words: str) -> None:
    """As those of config.json are."""
    with pytest.raises(Refused, match=words):
        sized(b"", params=PIXTRAL | more, files=OWN)


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
