"""What each architecture keeps of one request of 32,768 tokens, worked out from vLLM's formulas by hand.

Formulas, vLLM 0.33: `vllm/v1/kv_cache_interface.py` (`max_memory_usage_bytes` of each spec), groups of layers in
`vllm/v1/core/kv_cache_planning.py`, pages beside states in `vllm/platforms/interface.py` (`_align_hybrid_block_size`),
states in `vllm/model_executor/layers/mamba/mamba_utils.py`. Configs have the keys that matter, as on the hub.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings
from blocks.ports.market import Offer
from flows.policy.sizing.architectures import STATES
from flows.policy.sizing.kv_cache import GIB
from flows.policy.sizing.quantisation import capability_of
from flows.policy.sizing.sizing import Need, fit, size_model

Config = Mapping[str, object]
LONG = 32_768


def model(family: str, layers: int, heads: int, width: int, **more: object) -> dict[str, object]:
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "vocab_size": 100_000,
    } | more


LONGCAT_FLASH = {
    "model_type": "longcat_flash", "num_layers": 28, "num_attention_heads": 64, "hidden_size": 6144,
    "ffn_hidden_size": 12_288, "expert_ffn_hidden_size": 2048, "moe_topk": 12, "vocab_size": 131_072,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "max_position_embeddings": 131_072,
}  # fmt: skip
DEEPSEEK_V32 = model(
    "deepseek_v32", 61, 128, 7168, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128,
    index_head_dim=128, index_n_heads=64, index_topk=2048, moe_intermediate_size=2048, num_experts_per_tok=8,
    max_position_embeddings=163_840,
)  # fmt: skip
EIGHT_BITS = {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
COMMAND_R = model(
    "cohere", 40, 64, 8192, num_key_value_heads=64, max_position_embeddings=8192, model_max_length=131_072
)
LLAMA4_SCOUT = {
    "model_type": "llama4",
    "text_config": model(
        "llama4_text", 48, 40, 5120, num_key_value_heads=8, head_dim=128, attention_chunk_size=8192,
        max_position_embeddings=10_485_760, no_rope_layers=[],
    ),
}  # fmt: skip
QWEN3_NEXT = model(
    "qwen3_next", 48, 16, 2048, num_key_value_heads=2, head_dim=256, full_attention_interval=4,
    linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
    linear_conv_kernel_dim=4, max_position_embeddings=262_144,
)  # fmt: skip
JAMBA = model(
    "jamba", 32, 32, 4096, num_key_value_heads=8, attn_layer_period=8, attn_layer_offset=4, mamba_d_state=16,
    mamba_d_conv=4, mamba_expand=2, max_position_embeddings=262_144,
)  # fmt: skip
NEMOTRON_H_8B = model(
    "nemotron_h", 52, 32, 4096, num_key_value_heads=8, head_dim=128, mamba_num_heads=128, mamba_head_dim=64, n_groups=8,
    ssm_state_size=128, conv_kernel=4,
    hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
)  # fmt: skip
FALCON_H1_7B = model(
    "falcon_h1", 44, 12, 3072, num_key_value_heads=2, head_dim=128, mamba_d_ssm=3072, mamba_n_heads=24,
    mamba_d_head=128, mamba_n_groups=1, mamba_d_state=256, mamba_d_conv=4, mamba_expand=2,
)  # fmt: skip
GRANITE_4_SMALL = model(
    "granitemoehybrid", 40, 32, 4096, num_key_value_heads=8, mamba_n_heads=128, mamba_d_head=64, mamba_n_groups=1,
    mamba_d_state=128, mamba_d_conv=4, mamba_expand=2,
    layer_types=["attention" if layer in {5, 15, 25, 35} else "mamba" for layer in range(40)],
)  # fmt: skip
ZAMBA2 = model(
    "zamba2", 54, 32, 2560, num_key_value_heads=32, attention_head_dim=160,
    hybrid_layer_ids=[6, 12, 18, 24, 30, 36, 42, 47, 51], n_mamba_heads=80, mamba_headdim=64, mamba_ngroups=1,
    mamba_d_state=64, mamba_d_conv=4, mamba_expand=2,
)  # fmt: skip
KIMI_LINEAR = model(
    "kimi_linear", 27, 32, 2304, num_key_value_heads=32, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
    v_head_dim=128, linear_attn_config={
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
        "kda_layers": [layer for layer in range(1, 28) if layer % 4 and layer != 27],
    },
)  # fmt: skip
LFM2 = model(
    "lfm2", 16, 32, 2048, num_key_value_heads=8, full_attn_idxs=[2, 5, 8, 10, 12, 14], conv_dim=2048, conv_L_cache=3
)
FALCON_MAMBA_7B = {
    "model_type": "falcon_mamba", "num_hidden_layers": 64, "hidden_size": 4096, "intermediate_size": 8192,
    "state_size": 16, "conv_kernel": 4, "vocab_size": 65_024,
}  # fmt: skip
GEMMA3N = {"model_type": "gemma3n", "text_config": model(
    "gemma3n_text", 35, 8, 2048, num_key_value_heads=2, head_dim=256, sliding_window=512, num_kv_shared_layers=15,
    layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 7,
)}  # fmt: skip
GPT_OSS_120B = model(
    "gpt_oss", 36, 64, 2880, num_key_value_heads=8, head_dim=64, sliding_window=128, num_local_experts=128,
    num_experts_per_tok=4, quantization_config={"quant_method": "mxfp4"},
    layer_types=["sliding_attention", "full_attention"] * 18,
)  # fmt: skip
MIMO_V2_FLASH = model(
    "mimo_v2_flash", 48, 64, 4096, num_key_value_heads=4, head_dim=192, v_head_dim=128, sliding_window_size=128,
    swa_num_attention_heads=64, swa_num_key_value_heads=8, swa_head_dim=192, swa_v_head_dim=128,
    hybrid_layer_pattern=[0, *([1, 1, 1, 1, 0] + [1, 1, 1, 1, 1, 0] * 7)],
)  # fmt: skip
NEMOTRON_SUPER_49B = {
    **model("nemotron-nas", 80, 64, 8192),
    "block_configs": [{"attention": {"n_heads_in_group": 8, "no_op": False}}] * 49
    + [{"attention": {"n_heads_in_group": None, "no_op": True}}] * 31,
}
DBRX = {
    "model_type": "dbrx", "n_layers": 40, "n_heads": 48, "d_model": 6144, "vocab_size": 100_352, "max_seq_len": 32_768,
    "attn_config": {"kv_n_heads": 8, "clip_qkv": 8},
}  # fmt: skip
FALCON_7B = {"model_type": "falcon", "num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544,
             "multi_query": True, "num_kv_heads": 71, "vocab_size": 65_024}  # fmt: skip
FALCON_40B = {"model_type": "falcon", "num_hidden_layers": 60, "num_attention_heads": 128, "hidden_size": 8192,
              "new_decoder_architecture": True, "multi_query": True, "num_kv_heads": 8}  # fmt: skip
STARCODER = {"model_type": "gpt_bigcode", "n_layer": 40, "n_head": 48, "n_embd": 6144, "multi_query": True}
STARCODER2 = model("starcoder2", 40, 48, 6144, num_key_value_heads=4, sliding_window=4096)
CHATGLM3 = {"model_type": "chatglm", "num_layers": 28, "num_attention_heads": 32, "hidden_size": 4096,
            "multi_query_attention": True, "multi_query_group_num": 2, "seq_length": 32_768}  # fmt: skip
STEP_3P5 = model(
    "step3p5", 48, 64, 4096, num_attention_groups=8, head_dim=128, sliding_window=512,
    attention_other_setting={"num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128},
    layer_types=["full_attention", *["sliding_attention"] * 3] * 12,
)  # fmt: skip
MINIMAX_M3 = {"model_type": "minimax_m3_vl", "text_config": model(
    "minimax_m3_text", 60, 64, 6144, num_key_value_heads=4, head_dim=128, num_local_experts=128, num_experts_per_tok=4,
    sparse_attention_config={
        "sparse_index_dim": 128, "sparse_block_size": 128, "sparse_attention_freq": [0] * 3 + [1] * 57,
    },
)}  # fmt: skip
GEMMA4_31B = {"model_type": "gemma4", "text_config": model(
    "gemma4_text", 60, 32, 5376, num_key_value_heads=16, head_dim=256, global_head_dim=512, sliding_window=1024,
    num_global_key_value_heads=4, attention_k_eq_v=True,
    layer_types=[*["sliding_attention"] * 5, "full_attention"] * 10,
)}  # fmt: skip
GEMMA4_BY_LAYER = {"model_type": "gemma4", "text_config": model(
    "gemma4_text", 60, 32, 5376, num_key_value_heads=16, head_dim=256, sliding_window=1024,
    per_layer_config={str(layer): {"head_dim": 512, "num_key_value_heads": 4} for layer in range(5, 60, 6)},
)}  # fmt: skip
IN_FLIGHT = 2 * 8192
"""Two steps' tokens."""


def window_tokens(window: int) -> int:
    """`SlidingWindowSpec`: whole blocks of 16 and one more."""
    return (-(-(window - 1 + IN_FLIGHT) // 16) + 1) * 16


# A page of as many tokens as hold a state; then pages of attention layers, and of states (align: 2, and 1 checkpoint).
QWEN3_NEXT_PAGE = 576 * 2 * 2 * 256 * 2  # of 64 tokens each; vLLM before 0.33, and beside other kernels, logs 544
JAMBA_PAGE = 80 * 2 * 8 * 128 * 2
NEMOTRON_PAGE = 1040 * 2 * 8 * 128 * 2
FALCON_H1_PAGE = 1568 * 2 * 2 * 128 * 2
GRANITE_PAGE = 528 * 2 * 8 * 128 * 2
ZAMBA2_PAGE = 48 * 2 * 32 * 160 * 2
KIMI_PAGE = 1920 * 576 * 2


@pytest.mark.parametrize(
    ("what", "kv_bytes"),
    [
        (LONGCAT_FLASH, 2 * 28 * 576 * 2 * LONG),
        (DEEPSEEK_V32, 61 * (576 * 2 + 128 + 4) * LONG),
        (DEEPSEEK_V32 | {"quantization_config": EIGHT_BITS}, 61 * (656 + 128 + 4) * LONG),
        # Every fourth layer from the third on has an index of its own (`index_topk_freq` of GLM's and V3.2's kin).
        (DEEPSEEK_V32 | {"index_topk_freq": 4}, (61 * 576 * 2 + 16 * 132) * LONG),
        (DEEPSEEK_V32 | {"index_topk_pattern": "FS" * 30 + "F"}, (61 * 576 * 2 + 31 * 132) * LONG),
        (COMMAND_R, 40 * 2 * 64 * 128 * 2 * LONG),
        (LLAMA4_SCOUT, 2 * 8 * 128 * 2 * (12 * LONG + 36 * (8192 + IN_FLIGHT))),
        (QWEN3_NEXT, QWEN3_NEXT_PAGE * (12 * 57 + 36 * 3)),
        (JAMBA, JAMBA_PAGE * (4 * 410 + 28 * 2)),
        (NEMOTRON_H_8B, NEMOTRON_PAGE * (4 * 32 + 24 * 3)),
        (FALCON_H1_7B, FALCON_H1_PAGE * (44 * 21 + 44 * 3)),
        (GRANITE_4_SMALL, GRANITE_PAGE * (4 * 63 + 36 * 3)),
        (ZAMBA2, ZAMBA2_PAGE * (9 * 683 + 54 * 3)),
        (KIMI_LINEAR, KIMI_PAGE * (7 * 18 + 21 * 3)),
        (LFM2, 16 * 2 * 8 * 64 * 2 * (6 * 2048 + 12 * 2)),
        (FALCON_MAMBA_7B, 64 * 8192 * (3 + 16) * 2),
        (GEMMA3N, 2 * 2 * 256 * 2 * (4 * LONG + 16 * window_tokens(512))),
        (GPT_OSS_120B, 2 * 8 * 64 * 2 * 18 * (LONG + window_tokens(128))),
        # The narrower keys of layers that see all lie two blocks to a page of the others'; 39 make 5 groups of 9.
        (MIMO_V2_FLASH, 9 * 4 * 320 * 2 * LONG + 45 * 8 * 320 * 2 * window_tokens(128)),
        (NEMOTRON_SUPER_49B, 49 * 2 * 8 * 128 * 2 * LONG),
        (DBRX, 40 * 2 * 8 * 128 * 2 * LONG),
        (FALCON_7B, 32 * 2 * 1 * 64 * 2 * LONG),
        (FALCON_40B, 60 * 2 * 8 * 64 * 2 * LONG),
        (STARCODER, 40 * 2 * 1 * 128 * 2 * LONG),
        (STARCODER2, 40 * 2 * 4 * 128 * 2 * window_tokens(4096)),
        (CHATGLM3, 28 * 2 * 2 * 128 * 2 * LONG),
        (CHATGLM3 | {"multi_query_attention": False}, 28 * 2 * 32 * 128 * 2 * LONG),
        (MINIMAX_M3, (60 * 2 * 4 * 128 * 2 + 57 * 128 * 2) * LONG),
        (GEMMA4_31B, 10 * 2 * 4 * 512 * 2 * LONG + 50 * 2 * 16 * 256 * 2 * window_tokens(1024)),
        (GEMMA4_BY_LAYER, 10 * 2 * 4 * 512 * 2 * LONG + 50 * 2 * 16 * 256 * 2 * window_tokens(1024)),
        (STEP_3P5, 2 * 8 * 128 * 2 * (12 * LONG + 36 * window_tokens(512))),
    ],
)
def test_one_request_takes_what_vllm_sets_aside_for_it(what: Config, kv_bytes: int) -> None:
    """On one card, and the figure is no bound: the architecture is known."""
    need = sized(what)
    assert need.kv_bytes == kv_bytes
    assert not need.is_bound


def sized(what: Config, tokens: int = LONG, requests: int = 1) -> Need:
    return size_model(what, [("model.safetensors", GIB)], None, EngineSettings(tokens, requests))


def cards(count: int, accelerator: str = "H100", gib: float = 80) -> Offer:
    return Offer("aws/us-east-1", accelerator, count, gib, None, use_spot=False, dollars_per_hour=1)


@pytest.mark.parametrize(
    ("what", "count", "kv_bytes"),
    [
        # Two KV heads: each of four cards has one, and a quarter of each state.
        (QWEN3_NEXT, 4, 320 * 2 * 256 * 2 * (12 * 103 + 36 * 3)),
        # As vLLM 0.33 itself plans it for a Hopper card.
        (QWEN3_NEXT, 8, 424_673_280),
        (LONGCAT_FLASH, 8, 2 * 28 * 576 * 2 * LONG),
        (LLAMA4_SCOUT, 8, 2 * 128 * 2 * (12 * LONG + 36 * (8192 + IN_FLIGHT))),
        # The latent vectors are whole on each card, the states are shared.
        (KIMI_LINEAR, 4, 512 * 576 * 2 * (7 * 64 + 21 * 3)),
        # One head of each kind on each of eight cards: pages of one size.
        (MIMO_V2_FLASH, 8, 320 * 2 * (9 * LONG + 45 * window_tokens(128))),
    ],
)
def test_on_several_cards_each_has_its_share(what: Config, count: int, kv_bytes: int) -> None:
    """Pages are made anew of what each card has of keys and states."""
    assert sized(what).kv.on_each_of(count, 8192) == kv_bytes


@pytest.mark.parametrize(("listed", "windows"), [(48 + 3, 36), (40, 30)])
def test_a_list_of_layers_need_not_be_as_long_as_the_model(listed: int, windows: int) -> None:
    """What goes on after its end only guesses ahead; what is left out keeps every token."""
    types = ["full_attention", *["sliding_attention"] * 3] * 13
    need = sized({**STEP_3P5, "layer_types": types[:listed]})
    layers = [48 - windows, windows]
    group = min(layers)
    full, sliding = (-(-count // group) * group for count in layers)
    assert need.kv_bytes == 2 * 8 * 128 * 2 * (full * LONG + sliding * window_tokens(512))


def test_requests_share_what_is_in_flight() -> None:
    """Eight windows, and twice a step's tokens for all of them together; states are each request's own."""
    one, eight = sized(GPT_OSS_120B).kv_bytes, sized(GPT_OSS_120B, requests=8).kv_bytes
    layer = 2 * 8 * 64 * 2
    assert one - 18 * layer * LONG == 18 * layer * window_tokens(128)
    assert eight - 18 * layer * 8 * LONG == 18 * layer * 16 * (-(-(8 * 127 + IN_FLIGHT) // 16) + 15)
    assert sized(FALCON_MAMBA_7B, requests=8).kv_bytes == 8 * sized(FALCON_MAMBA_7B).kv_bytes


def test_a_short_context_fills_no_window() -> None:
    """A request keeps no more than it has."""
    assert sized(GPT_OSS_120B, tokens=1024).kv_bytes == 2 * 8 * 64 * 2 * 18 * (1024 + 1024 + 16)


def test_whisper_keeps_what_it_hears_and_says() -> None:
    """`CrossAttentionSpec`: a step's tokens at least, of an encoder that hears 1,500."""
    whisper = {
        "model_type": "whisper", "decoder_layers": 32, "decoder_attention_heads": 20, "d_model": 1280,
        "max_target_positions": 448, "max_source_positions": 1500, "decoder_ffn_dim": 5120, "num_hidden_layers": 32,
        "vocab_size": 51_866,
    }  # fmt: skip
    assert sized(whisper, tokens=448).kv_bytes == 32 * 2 * 20 * 64 * 2 * (448 + 8192)
    with pytest.raises(Refused, match="made for 448 tokens"):
        sized(whisper, tokens=449)


def test_the_arithmetic_says_what_states_take() -> None:
    """And that their pages are as large as those of keys and values."""
    assert sized(QWEN3_NEXT).arithmetic[1:3] == (
        "KV cache: 12 layers x 2 x 2 KV heads x 256 x 2 bytes x 32,832 tokens x 1 request = 770 MiB",
        "States: 36 layers x 3 states of 1,097,728 bytes in pages of 1 MiB x 1 request = 122 MiB",
    )


# --- What is not known ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"layer_types": ["sliding_attention"] * 8, "sliding_window": 64},
        {"layer_types": ["linear_attention", "full_attention"] * 4},
    ],
)
def test_an_unknown_architecture_is_a_bound_and_says_so(more: Config) -> None:
    """Every layer counts as keeping every token, on the board as in the plan."""
    need = sized(model("flying_carpet", 8, 32, 4096, num_key_value_heads=8, **more))
    assert need.is_bound
    assert need.kv_bytes == 8 * 2 * 8 * 128 * 2 * LONG
    assert any("'flying_carpet' is not known here: the KV cache is a bound" in line for line in need.arithmetic)
    assert "KV cache at most 1.0 GiB" in fit(need, cards(1)).words


DEEPSEEK_V4_FLASH = model(
    "deepseek_v4", 43, 64, 4096, num_key_value_heads=1, head_dim=512, index_head_dim=128, sliding_window=128,
    compress_ratios=[0, 0, *([4, 128] * 20), 4, 0], moe_intermediate_size=2048,
)  # fmt: skip
BY_NAME = model(
    "deepseek_v4", 43, 64, 4096, num_key_value_heads=1, head_dim=512, index_head_dim=128, sliding_window=128,
    compress_rates={"sparse": 4, "heavy": 128}, moe_intermediate_size=2048,
    layer_types=["sliding_attention"] * 2 + ["sparse", "heavy"] * 20 + ["sparse"],
)  # fmt: skip


@pytest.mark.parametrize("what", [DEEPSEEK_V4_FLASH, BY_NAME])
def test_a_compressed_cache_is_a_bound_with_its_states(what: Config) -> None:
    """Of 43 layers 21 keep a fourth and 20 a hundred and twenty-eighth; what compresses them lies in small windows."""
    need = sized(what)
    held = (
        43 * 1024 * window_tokens(128)
        + 21 * (256 + 33) * LONG
        + 20 * 8 * LONG
        + 21 * (8192 + 2048) * window_tokens(8)
        + 20 * 4096 * window_tokens(128)
    )
    assert need.kv_bytes == pytest.approx(2 * held, rel=0.01)
    # What `_get_packed_kv_cache_groups` plans for it in 16 bits and in 8.
    assert 10.15 * GIB < need.kv_bytes < 2 * 6.36 * GIB
    assert need.is_bound
    assert any("how far pages of several sizes fill their blocks" in line for line in need.arithmetic)


def test_a_cache_that_is_compressed_in_a_way_not_told_is_refused() -> None:
    """Neither by numbers nor by names."""
    with pytest.raises(Refused, match="does not say how each layer compresses"):
        sized({**DEEPSEEK_V4_FLASH, "compress_ratios": [4]})


@pytest.mark.parametrize("family", ["<img src=x>", "a\nb", "| a |", "x" * 65, 7, None, ["llama"]])
def test_a_model_type_that_is_no_name_comes_into_no_words(family: object) -> None:
    """What people read is markdown; the architecture is not known, then."""
    need = sized(model("llama", 8, 32, 4096) | {"model_type": family})
    assert any("architecture '' is not known here" in line for line in need.arithmetic)


DEEP = reduce(lambda inner, _: [inner], range(100_000), cast("list[object]", []))
"""Deeper than whoever looks at all of it can go."""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (model("mimo_v2_flash", 10**6, 8, 64), "1,000,000 layers"),
        (
            model("nemotron_h", 8, 8, 64, hybrid_override_pattern="M" * 10_001),
            "10,001 entries in hybrid_override_pattern",
        ),
        (model("llama", 8, 8, 64, layer_types=["full_attention"] * 10_001), "10,001 entries in layer_types"),
        (model("llama", 8, 8, 64, num_key_value_heads=[8] * 10_001), "10,001 entries in num_key_value_heads"),
        # Of 4 and of 8 heads, which share the width? By the larger number heads would count as too narrow.
        (model("llama", 8, 8, 64, num_attention_heads=[4, 8]), r"num_attention_heads is \[4, 8\]"),
        (model("llama", 8, 8, 64, head_dim=DEEP), r"head_dim is \[\[\["),
        (model("inkling_text", 8, 8, 64), "how much is not worked out here"),
        (model("bamba", 32, 32, 4096, attn_layer_indices=[9, 18, 27]), "does not serve bamba any more"),
        (model("minimax_text_01", 80, 64, 6144, attn_type_list=[0, 1] * 40), "does not serve minimax_text_01 any more"),
        (model("llama", 8, 64, 32), "64 heads share a width of 32"),
        (model("llama", 8, 8, 64, head_dim="128"), "head_dim is '128'"),
        (model("llama", 8, 8, 64, head_dim=10**30), "head_dim is 1000000"),
        (model("llama", 8, 8, 64, head_dim=True), "head_dim is True"),
        (model("llama", 8, 8, 64, head_dim=float("nan")), "head_dim is nan"),
        (model("llama", 8, 8, 64, num_key_value_heads=[[8]]), r"num_key_value_heads is \[\[8\]\]"),
        (model("llama", 8, 8, 64, layer_types=[1, 2]), "layer_types what is no list of words"),
        (model("lfm2", 8, 8, 64, full_attn_idxs=["2"]), "full_attn_idxs what is no list of whole numbers"),
        (model("deci", 8, 8, 64), "no block_configs"),
        (model("deci", 8, 8, 64, block_configs=[{"attention": {"n_heads_in_group": 3}}]), "3 of 8 heads share"),
        (model("granitemoehybrid", 8, 8, 64), "does not say which layers keep a state"),
        (model("llama", 8, 8, 64, max_position_embeddings=64, rope_scaling={"factor": float("inf")}), "inf times"),
        (model("llama", 8, 8, 64, max_position_embeddings=64, rope_scaling={"factor": -2}), "positions -2 times"),
    ],
)
def test_an_odd_config_is_refused_in_words(what: Config, words: str) -> None:
    """By the number's name and what stands there."""
    with pytest.raises(Refused, match=words):
        sized(what)


@pytest.mark.parametrize("outer", [{"num_hidden_layers": 1}, {"hidden_size": 64}, {"num_attention_heads": 4096}])
def test_a_language_model_has_no_number_of_another_part(outer: Config) -> None:
    """What it leaves out, vLLM takes from the family's class and never from what stands around it."""
    whole = model("llama", 32, 32, 4096)
    inner = {name: value for name, value in whole.items() if name not in outer}
    with pytest.raises(Refused, match="says nothing of"):
        sized({"model_type": "of_several_media", **outer, "thinker_config": {"text_config": inner}})
    twice = {"thinker_config": {"text_config": whole}}
    assert sized({"model_type": "of_several_media", **outer, **twice}).kv_bytes == sized(whole).kv_bytes


@pytest.mark.parametrize("nothing", [{}, {"sliding_window": None}])
def test_a_window_that_is_none_is_none(nothing: Config) -> None:
    """In a text config too: said to be none is another thing than not said."""
    text = model("gpt_oss", 36, 64, 2880, num_key_value_heads=8, **nothing)
    full = 36 * 2 * 8 * 64 * 2 * LONG
    assert (sized({"model_type": "several", "text_config": text}).kv_bytes == full) is bool(nothing)


@pytest.mark.parametrize(
    ("what", "longest"),
    [
        (COMMAND_R, 131_072),
        (model("llama", 8, 8, 64, max_position_embeddings=LONG, model_max_length=10**30), LONG),
        (model("llama", 8, 8, 64, max_position_embeddings=LONG, model_max_length=1e30), LONG),
        (model("llama", 8, 8, 64, max_position_embeddings=40_960, max_sequence_length=LONG), LONG),
        (model("mpt", 8, 8, 64, max_seq_len=LONG), LONG),
        (model("gpt2", 8, 8, 64, n_positions=LONG), LONG),
        (CHATGLM3, LONG),
        ({"model_type": "thing", "thinker_config": {"text_config": model("llama", 8, 8, 64, seq_length=LONG)}}, LONG),
        (model("phi3", 8, 8, 64, max_position_embeddings=LONG, rope_scaling={"type": "longrope", "factor": 4}), LONG),
        (model("llama", 8, 8, 64, max_position_embeddings=16_384, rope_scaling={"type": "dynamic", "factor": 2}), LONG),
    ],
)
def test_the_context_is_what_vllm_derives(what: Config, longest: int) -> None:
    """The smallest of what is stated, but `model_max_length` before all, and 10^30 is no statement."""
    sized(what, tokens=longest)
    with pytest.raises(Refused, match=f"made for {longest:,} tokens"):
        sized(what, tokens=longest + 1)


NAMES = st.sampled_from([
    "num_hidden_layers", "num_attention_heads", "hidden_size", "head_dim", "kv_lora_rank", "layer_types", "text_config",
    "quantization_config", "rope_scaling", "sliding_window", "block_configs", "attn_config", "linear_attn_config",
    "hybrid_override_pattern", "attn_type_list", "num_kv_shared_layers", "index_topk_pattern", "index_head_dim",
    "config_groups", "weights", "group_size", "quant_method", "sliding_window_pattern", "model_max_length",
    "vocab_size", "num_key_value_heads", "full_attn_idxs", "attn_layer_offset", "conv_L_cache", "mamba_d_head",
    "n_groups", "compress_ratios", "compress_rates",
])  # fmt: skip
FAMILIES = st.sampled_from(
    ["llama", "gemma2", "deepseek_v32", "deepseek_v4", "whisper", "nemotron-nas", "exaone4", "x", *STATES]
)
ODD = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**40)
    | st.floats()
    | st.sampled_from(["", "M*-", "LG", "auto", "fp8"])
)
VALUES: st.SearchStrategy[object] = st.deferred(
    lambda: ODD | st.lists(VALUES, max_size=3) | st.dictionaries(NAMES, VALUES, max_size=4)
)


@settings(deadline=None, max_examples=300)
@given(FAMILIES, st.dictionaries(NAMES, VALUES, max_size=6), st.integers(1, 9))
def test_any_config_is_sized_or_refused(family: str, odd: Config, count: int) -> None:
    """Whatever somebody has written there: no other error comes of it, and no negative number."""
    whole = {**QWEN3_NEXT, **JAMBA, **KIMI_LINEAR, **LFM2, "model_type": family, **odd}
    with suppress(Refused):
        need = sized(whole)
        assert need.kv_bytes >= 0
        fit(need, cards(count))


@settings(deadline=None)
@given(
    st.sampled_from([QWEN3_NEXT, JAMBA, KIMI_LINEAR, GPT_OSS_120B, LLAMA4_SCOUT, MIMO_V2_FLASH, ZAMBA2, GEMMA3N]),
    st.integers(1, LONG // 2),
    st.integers(1, 32),
    st.integers(0, LONG // 2),
    st.integers(0, 8),
)
def test_more_is_never_less(what: Config, tokens: int, requests: int, more: int, others: int) -> None:
    """Of context and of requests."""
    assert sized(what, tokens, requests).kv_bytes <= sized(what, tokens + more, requests + others).kv_bytes


# --- What cards can share and run -----------------------------------------------------------------------------------

W4A16 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 128, "strategy": "group", "symmetric": True},
            "input_activations": None,
        }
    },
}
LLAMA_8B = model("llama", 32, 32, 4096, num_key_value_heads=8)
FP8_CACHE = W4A16 | {"kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}}


def test_a_checkpoint_may_halve_its_cache() -> None:
    """With scales for eight bits in it, vLLM keeps keys and values so (`kv_cache_scheme` in attention.py)."""
    assert sized(LLAMA_8B | {"quantization_config": FP8_CACHE}).kv_bytes == 32 * 2 * 8 * 128 * LONG
    assert sized(LLAMA_8B | {"quantization_config": W4A16}).kv_bytes == 32 * 2 * 8 * 128 * 2 * LONG


QWEN_72B = model("qwen2", 80, 64, 8192, num_key_value_heads=8, intermediate_size=29_568)


FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
QWEN3_30B_FP8 = model(
    "qwen3_moe", 48, 32, 2048, num_key_value_heads=4, head_dim=128, intermediate_size=6144, moe_intermediate_size=768,
    num_experts=128, num_experts_per_tok=8, quantization_config=FP8_BLOCKS,
)  # fmt: skip
MINIMAX_M2 = model(
    "minimax_m2", 62, 48, 3072, num_key_value_heads=8, head_dim=128, intermediate_size=1536, num_local_experts=256,
    num_experts_per_tok=8, quantization_config=FP8_BLOCKS,
)  # fmt: skip
GLM_4V = {
    "model_type": "glm4v_moe",
    "text_config": model("glm4_moe", 46, 96, 4096, num_key_value_heads=8, head_dim=128),
    "vision_config": {"num_heads": 12, "hidden_size": 1536, "depth": 24},
}
VOXTRAL = {
    "model_type": "voxtral",
    "text_config": model("llama", 30, 32, 3072, num_key_value_heads=8, head_dim=128),
    "audio_config": {"num_attention_heads": 20},
}


@pytest.mark.parametrize(
    ("what", "count", "accelerator", "can"),
    [
        # 768 of an expert in blocks of 128: four cards cut these six at 64, if their programs can.
        (QWEN3_30B_FP8, 2, "A100-80GB", True),
        (QWEN3_30B_FP8, 4, "A100-80GB", False),
        (QWEN3_30B_FP8, 4, "MI300X", False),
        (QWEN3_30B_FP8, 4, "L40S", True),
        (QWEN3_30B_FP8, 8, "H100", True),
        (MINIMAX_M2, 8, "H200", True),
        # An expert that is for all tokens is no expert's layer, and other methods' groups stay whole.
        (QWEN3_30B_FP8 | {"n_shared_experts": 1}, 4, "H100", False),
        (QWEN3_30B_FP8 | {"quantization_config": W4A16}, 4, "H100", False),
    ],
)
def test_blocks_of_experts_are_cut_where_vllm_can(what: Config, count: int, accelerator: str, *, can: bool) -> None:
    """As it plans it itself: without this no machine of eight cards had Qwen3-Coder-480B in eight bits."""
    found = fit(sized(what, tokens=1024), cards(count, accelerator, 141))
    assert ("cannot share" not in found.words) is can, found.words


def test_an_encoder_that_is_not_cut_is_shared_by_any_cards() -> None:
    """InternVL's heads are filled up to what the cards share."""
    assert fit(sized(GLM_4V), cards(4)).fits
    assert fit(sized(GLM_4V | {"model_type": "internvl_chat"}), cards(8)).fits


@pytest.mark.parametrize(
    ("what", "count", "words"),
    [
        (GLM_4V, 8, "12 attention heads of the encoder"),
        (VOXTRAL, 8, "20 attention heads of the encoder"),
        (QWEN_72B | {"quantization_config": W4A16}, 8, "231 quantised groups"),
        (QWEN_72B | {"compression_config": W4A16}, 8, "231 quantised groups"),
        ({"model_type": "v", "quantization_config": W4A16, "text_config": QWEN_72B}, 8, "231 quantised groups"),
        (FALCON_7B, 2, "71 attention heads"),
        (QWEN3_NEXT, 32, "16 attention heads"),
        (NEMOTRON_H_8B, 16, "8 groups of states"),
        (FALCON_H1_7B, 8, "12 attention heads, 24 heads of states"),
        (NEMOTRON_SUPER_49B, 128, "64 attention heads"),
    ],
)
def test_what_cannot_be_cut_is_shared_by_no_cards(what: Config, count: int, words: str) -> None:
    """Whole heads, whole quantised groups, whole heads and groups of states."""
    found = fit(sized(what), cards(count))
    assert not found.fits
    assert words in found.words


@pytest.mark.parametrize(
    ("said", "accelerator", "can"),
    [
        (None, "V100", False),
        (None, "P100", False),
        (None, "T4", True),
        ({"quant_method": "awq", "group_size": 128}, "T4", True),
        ({"quant_method": "gptq", "group_size": 128}, "V100-32GB", False),
        ({"quant_method": "fp8"}, "T4", True),
        ({"quant_method": "mxfp4"}, "T4", False),
        ({"quant_method": "mxfp4"}, "A10G", True),
        ({"quant_method": "modelopt"}, "T4", False),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "T4", True),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "L4", True),
        # As newer versions of ModelOpt have it, without a section of its own; and with a quantised cache alone.
        ({"quant_method": "modelopt", "producer": {"name": "modelopt"}, "quant_algo": "NVFP4"}, "T4", True),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": None}}, "T4", True),
        (W4A16, "T4", True),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {
                "weights": {"num_bits": 4, "type": "int", "group_size": 128},
                "input_activations": {"num_bits": 8, "type": "float"},
            }}},
            "A100-80GB", False,
        ),
        ({"quant_method": "fbgemm_fp8"}, "RTX6000", False),
        ({"quant_method": "fbgemm_fp8"}, "RTX6000-Ada", True),
        ({"quant_method": "fbgemm_fp8"}, "MI300X", True),
        ({"quant_method": "fbgemm_fp8"}, "somebody's card", True),
    ],
)  # fmt: skip
def test_cards_run_what_they_can(said: Config | None, accelerator: str, *, can: bool) -> None:
    """By their compute capability, where it is known."""
    what = model("llama", 4, 8, 1024, num_key_value_heads=8, **({"quantization_config": said} if said else {}))
    found = fit(sized(what, tokens=1024), cards(1, accelerator, 32))
    assert found.fits is can, found.words
    assert can or "compute capability" in found.words


@pytest.mark.parametrize(
    ("accelerator", "capability"),
    [
        ("L4", 8.9), ("L40S", 8.9), ("l4", 8.9), ("A10", 8.6), ("A10G", 8.6), ("A100", 8.0), ("A100-80GB-SXM", 8.0),
        ("V100-32GB", 7.0), ("P4", 6.1), ("P40", 6.1), ("RTX4090", 8.9), ("RTX4000", 7.5), ("RTX5000", 7.5),
        ("RTX5090", 12.0), ("RTX5000-Ada", 8.9), ("RTXA6000", 8.6), ("H100-SXM", 9.0), ("GH200", 9.0), ("B200", 10.0),
        ("GB300", 10.0), ("MI300X", None), ("gpu", None), ("L400", None), ("", None),
    ],
)  # fmt: skip
def test_what_a_card_can_is_known_by_its_name(accelerator: str, capability: float | None) -> None:
    """By the longest name that it begins with; of other makers' and unknown cards nothing is."""
    assert capability_of(accelerator) == capability


@pytest.mark.parametrize(
    ("what", "accelerator", "can"),
    [
        (DEEPSEEK_V32, "A100-80GB", False),
        (DEEPSEEK_V32, "H200", True),
        (DEEPSEEK_V4_FLASH, "L40S", False),
        ({**DEEPSEEK_V32, "model_type": "deepseek_v3", "index_head_dim": None}, "A100-80GB", True),
    ],
)
def test_sparse_attention_has_kernels_for_new_cards_alone(what: Config, accelerator: str, *, can: bool) -> None:
    """From compute capability 9.0 on; latent attention without an index runs on all."""
    found = fit(sized(what, tokens=1024), cards(1, accelerator, 141))
    assert ("compute capability" not in found.words) is can


@pytest.mark.parametrize(
    "said",
    [
        *({"quant_method": method} for method in ("bitsandbytes", "aqlm", None, 4, {"a": 1})),
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "INT8_SQ"}},
    ],
)
def test_a_checkpoint_that_vllm_cannot_read_is_refused(said: Config) -> None:
    """Before a machine is rented that cannot start."""
    with pytest.raises(Refused, match="which vLLM does not serve"):
        sized(model("llama", 4, 8, 1024, quantization_config=said))


@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("said", ["fp8", [{"quant_method": "fp8"}], 8, True])
def test_a_quantisation_that_is_no_object_is_refused(name: str, said: object) -> None:
    """It was read as none at all."""
    with pytest.raises(Refused, match=f"says in {name} what is no object"):
        sized(model("llama", 4, 8, 1024, **{name: said}))


def test_the_largest_cards_compute_more_at_once() -> None:
    """From 160 GiB on, vLLM's step has 16,384 tokens: activations and windows are larger there."""
    need = sized(GPT_OSS_120B)
    some, more = (fit(need, cards(1, *card)).needed_gib for card in (("H200", 141), ("B200", 180)))
    assert some is not None
    assert more is not None
    wider = 8192 * need.token_bytes + 18 * 2 * 8 * 64 * 2 * 16 * ((LONG + 16 - window_tokens(128)) // 16)
    assert (more - some) * GIB == pytest.approx(wider, rel=1e-6)


# --- Disk -----------------------------------------------------------------------------------------------------------


def disk_of(files: Sequence[tuple[str, int]]) -> Need:
    return size_model(QWEN_72B, files, None, EngineSettings(1024, 1))


def test_a_replica_needs_disk_for_all_that_it_fetches() -> None:
    """440 GiB of weights do not go onto a disk of 256, nor does what the engine does not load go nowhere."""
    need = disk_of([("model.safetensors", 440 * GIB), ("original/consolidated.pth", 10 * GIB)])
    assert need.disk_bytes == int(450 * GIB * 1.1) + 32 * GIB
    small = Offer("local", "H100", 8, 80, None, use_spot=False, dollars_per_hour=1, disk_gib=256)
    found = fit(need, small)
    assert not found.fits
    assert found.words == (
        "527.0 GiB of disk are needed and local has 256.0 GiB for it; make room there, or choose another"
    )
    assert fit(disk_of([("model.safetensors", GIB)]), small).fits
