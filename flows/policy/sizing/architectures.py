"""What does each architecture keep of a request? As vLLM 0.33 lays it out, a table and a few rules.

Each entry names vLLM's file that it follows; `vllm/transformers_utils/model_arch_config_convertor.py` has the names of
KV heads and head widths, `vllm/model_executor/layers/mamba/mamba_utils.py` the shapes of states. What is not in the
tables is read as attention that keeps every token in every layer, at the widest heads that the config names, and the
reading says that it is a bound.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blocks.errors import Refused
from flows.policy.sizing.kv_cache import BLOCK_TOKENS, LATENT_BLOCK_TOKENS, Cache, Part
from flows.policy.sizing.model_config import (
    ATTENTION_HEADS,
    KV_HEADS,
    LAYERS,
    LONGEST_LIST,
    WIDTH,
    Config,
    family_of,
    needed,
    number,
    numbers_in,
    section,
    shown,
    words_in,
)

VALUE_BYTES = 2
"""Of one value in the KV cache and in activations: vLLM serves float32 in 16 bits too."""
FLOAT32_BYTES = 4

Layer = Literal["full", "window", "chunk", "state", "both", "nothing"]
"""What a layer keeps: every token, those of its window or chunk, a state, a state beside every token."""
Rule = Callable[[Config], Sequence[Layer]]

LAYER_WORDS: Mapping[str, Layer] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "chunk",
    "linear_attention": "state",
    "mamba": "state",
    "conv": "state",
    "hybrid": "both",
    "moe": "nothing",
    "mlp": "nothing",
}
"""How `layer_types` and `layers_block_type` call it."""
NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}

PLAIN = frozenset({
    "afmoe", "apertus", "arcee", "aria_text", "bailing_moe", "bailing_moe_v2", "bloom", "chatglm", "cohere", "dbrx",
    "deepseek", "ernie4_5", "ernie4_5_moe", "exaone", "falcon", "gemma", "glm", "glm4", "glm4_moe", "gpt2",
    "gpt_bigcode", "gpt_neox", "gptj", "granite", "granitemoe", "granitemoeshared", "internlm2", "internlm3",
    "kimi_vl", "llama", "mimo", "minicpm", "minicpm3", "minimax_m2", "minimax_m3_text", "ministral3", "mistral",
    "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmoe", "opt", "orion", "persimmon", "phi", "phi3", "phi3_v",
    "phi4mm", "phimoe", "qwen2", "qwen2_5_omni_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl",
    "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text", "seed_oss",
    "smollm3", "solar", "stablelm", "starcoder2", "step1", "step3_text", "telechat2",
})  # fmt: skip
"""Families that keep keys and values of every token in every layer, unless `layer_types` says otherwise."""
SLIDING = frozenset({
    "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text",
    "gemma4_unified_text", "gpt_oss", "laguna", "llama4_text", "mimo_v2", "mimo_v2_flash", "ministral", "olmo3",
    "step3p5",
})  # fmt: skip
ALL_SLIDE = frozenset({"mistral", "mixtral", "phi3", "phi3_v", "phimoe", "starcoder2"})
"""A window that they name is that of every layer (`sliding_window` in vLLM's engine/arg_utils.py)."""
WINDOW_AND_ONE = frozenset({"cohere2", "cohere2_moe"})
"""Their window does not count the token itself (model_executor/models/commandr.py)."""
PATTERNS = {
    "gemma2": 2, "gpt_oss": 2, "gemma3_text": 6, "gemma3n_text": 5, "gemma4_text": 6, "gemma4_unified_text": 6,
    "cohere2": 4, "exaone4": 4, "qwen3_next": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4, "olmo_hybrid": 4,
    "llama4_text": 4,
}  # fmt: skip
"""Where a config does not name its layers, each so many-th keeps every token (transformers' configuration_*.py)."""
PATTERN_NAMES = (
    "sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval", "no_rope_layer_interval",
)  # fmt: skip

LATENT = frozenset({
    "axk1", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2",
    "kimi_linear", "longcat_flash", "pangu_ultra_moe",
})  # fmt: skip
"""Families whose compressed KV cache vLLM keeps as it is (`is_deepseek_mla`); others it unfolds into heads."""
CACHES_A_LAYER = {"longcat_flash": 2}
"""Two attentions stand in each of its layers (model_executor/models/longcat_flash.py)."""
INDEX_BLOCK = 128
"""So many bytes of an index's key share one scale of four (model_executor/models/deepseek_v2.py)."""
PACKED_LATENT_BYTES = 656
"""Of a latent vector in eight bits, with its scales and its 16-bit positions (`fp8_ds_mla` in mla_attention.py)."""


@dataclass(frozen=True)
class States:
    """Where a family's config has the shape of what its layers keep in place of tokens."""

    shape: Callable[[Config], Sequence[Part]]
    kept: int = 2
    """Of one request: vLLM keeps the running one, the last before a block's end, and some a checkpoint of the prompt's
    (`MambaSpec.max_memory_usage_bytes` with prefix caching, which is on by default)."""
    step: int = BLOCK_TOKENS
    """Of how many tokens pages beside them are a multiple (`get_prefill_checkpoint_alignment`)."""


@dataclass(frozen=True)
class Reading:
    """What a config says of the cache."""

    layers: int
    heads: int
    caches: tuple[Cache, ...]
    whole: tuple[tuple[int, str], ...] = ()
    """What else each card has to get a whole number of."""
    bound: str = ""
    """Why it keeps at most so much; empty where it is so much."""
    is_packed: bool = False
    """Pages of several sizes share each block."""
    least_capability: float = 0.0
    """The compute capability below which vLLM has no kernels for it."""


def read_architecture(text: Config) -> Reading:
    """Of the language model's own numbers; Refused where they do not say enough."""
    family = family_of(text)
    if family in NO_LONGER_SERVED:
        raise Refused(
            f"vLLM does not serve {family} any more, so an engine would end as it starts; choose another model"
        )
    if family.startswith(NOT_SIZED):
        raise Refused(
            f"{family} keeps more than every token's keys and values, and how much is not worked out here; choose"
            " another model"
        )
    if family in READINGS:
        return READINGS[family](text)
    heads = number(text, *ATTENTION_HEADS) if family in ATTENTION_FREE else needed(text, *ATTENTION_HEADS)
    kinds = _kinds_of_layers(text, family)
    is_known = family in PLAIN | SLIDING | LATENT | BLOCKS or family in STATES
    if family not in STATES and {"state", "both"} & {*kinds}:
        # How large a state is cannot be told; every token's keys are more from about a thousand of them on.
        kinds, is_known = _as_full(kinds, "state", "both"), False
    caches = [*_attention(text, family, heads or 1, kinds), *_states(text, family, kinds)]
    whole = [(heads, "attention heads")] if heads else []
    if family in STATES:
        whole += _whole_states(text)
    bound = "" if is_known else NOT_KNOWN.format(family=family)
    least = SPARSE_FROM if family in LATENT and number(text, "index_head_dim") else 0.0
    return Reading(len(kinds), heads or 1, tuple(caches), tuple(whole), bound, least_capability=least)


SPARSE_FROM = 9.0
"""Of all kernels for sparse latent attention (`supports_compute_capability` in vllm/v1/attention/backends/mla)."""
NO_LONGER_SERVED = frozenset({"bamba", "minimax", "minimax_m1", "minimax_text_01", "phi3small", "phi4flash", "plamo2"})
"""Of `_PREVIOUSLY_SUPPORTED_MODELS` in its model_executor/models/registry.py, those whose place Transformers'
classes cannot take, for they keep states or need code of their own."""
NOT_SIZED = ("inkling", "deepseek_v41")
"""How families begin of which a bound by tokens would be none: what passes through their short convolutions and
compressors lies in windows that vLLM sizes for two steps (vllm/models/inkling/nvidia/sconv_swa_attn.py)."""
NOT_KNOWN = (
    "The architecture {family!r} is not known here: the KV cache is a bound, as if each layer kept the keys and values"
    " of every token"
)


ATTENTION_FREE = frozenset({"mamba", "mamba2", "falcon_mamba"})


CUT_ENCODERS = frozenset({
    "aria", "cohere2_vision", "dots_ocr", "ernie4_5_moe_vl", "exaone4_5", "gemma3", "glm4v", "glm4v_moe", "glm_ocr",
    "idefics3", "isaac", "kimi_k25", "kimi_vl", "llama4", "llava", "llava_next", "llava_next_video", "llava_onevision",
    "minicpmv", "mistral3", "paddleocr_vl", "paligemma", "pixtral", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe",
    "qwen3_vl", "qwen3_vl_moe", "smolvlm", "voxtral",
})  # fmt: skip
"""Models whose encoder of images or sound vLLM cuts as it cuts the language model (`divide` in glm4_1v.py, siglip.py
and others); InternVL's fills its heads up, and others have theirs whole on each card."""
ENCODER_HEADS = ("num_heads", "num_attention_heads", "encoder_attention_heads")


def encoder_heads(config: Config) -> int | None:
    """Of which each card has to get as many, as https://github.com/vllm-project/vllm/issues/24004 found too late."""
    if family_of(config) not in CUT_ENCODERS:
        return None
    return number(section(config, "vision_config") or section(config, "audio_config"), *ENCODER_HEADS)


# --- Which layers keep what -----------------------------------------------------------------------------------------


def _kinds_of_layers(text: Config, family: str) -> Sequence[Layer]:
    if family in BLOCKS:
        return [_kind(is_full=heads is not None) for heads in _heads_of_blocks(text)]
    said = words_in(text, "layer_types") or words_in(text, "layers_block_type")
    said = said or words_in(text, "hybrid_override_pattern", NEMOTRON_LETTERS)
    kinds: Sequence[Layer] = [LAYER_WORDS.get(word, "full") for word in said] if said else _by_rule(text, family)
    if family != "nemotron_h":  # whose list alone counts
        kinds = _fitted(kinds, _layers(text))
    if family not in PLAIN | SLIDING and family not in STATES:
        # What vLLM makes of the windows of an architecture that is not known here, nobody knows.
        kinds = _as_full(kinds, "window", "chunk")
    shared = number(text, "num_kv_shared_layers") or 0
    # Those at the end read what earlier ones have kept (gemma3n.py, gemma4.py).
    own = max(0, len(kinds) - shared)
    return [kind if layer < own else "nothing" for layer, kind in enumerate(kinds)]


def _by_rule(text: Config, family: str) -> Sequence[Layer]:
    """Where a config does not name its layers one by one."""
    if family in RULES and (kinds := RULES[family](text)):
        return kinds
    layers = _layers(text)
    said = {name: text[name] for name in PATTERN_NAMES if not isinstance(text.get(name, ""), str)}
    # Of other families vLLM reads no pattern.
    if family in PATTERNS and (every := number(said, *PATTERN_NAMES) or PATTERNS[family]):
        other: Layer = "chunk" if family == "llama4_text" else "state" if family in STATES else "window"
        return _every(layers, every, other)
    if family in STATES:
        raise Refused(f"config.json of {family} does not say which layers keep a state; choose another model")
    return _repeat("window" if family in ALL_SLIDE else "full", layers)


def _repeat(kind: Layer, layers: int) -> Sequence[Layer]:
    return tuple(kind for _ in range(layers))


def _fitted(kinds: Sequence[Layer], layers: int) -> Sequence[Layer]:
    """Some lists go on with layers that only guess ahead, which are not served; what a list leaves out sees all."""
    return [*kinds[:layers], *_repeat("full", layers - len(kinds))]


def _as_full(kinds: Sequence[Layer], *others: Layer) -> Sequence[Layer]:
    return ["full" if kind in others else kind for kind in kinds]


def _kind(*, is_full: bool) -> Layer:
    return "full" if is_full else "nothing"


def _or_zero(text: Config, name: str, otherwise: int) -> int:
    """A number of which zero is one as well."""
    return 0 if text.get(name) == 0 else number(text, name) or otherwise


def _at(layers: int, indices: Sequence[int], kind: Layer = "full") -> Sequence[Layer]:
    chosen = set(indices)
    return [kind if index in chosen else "state" for index in range(layers)]


def _every(layers: int, every: int, other: Layer) -> Sequence[Layer]:
    return ["full" if (index + 1) % every == 0 else other for index in range(layers)]


def _layers(text: Config) -> int:
    # LongCat's num_hidden_layers, where there is one, counts its attentions.
    named = ("num_layers", *LAYERS) if family_of(text) == "longcat_flash" else LAYERS
    layers = needed(text, *named)
    if layers > LONGEST_LIST:
        raise Refused(f"config.json says that the model has {layers:,} layers; choose another model")
    return layers


def _jamba(text: Config) -> Sequence[Layer]:
    period, layers = number(text, "attn_layer_period") or 8, _layers(text)
    return _at(layers, range(_or_zero(text, "attn_layer_offset", 4), layers, period))


def _kimi_linear(text: Config) -> Sequence[Layer]:
    """Counted from one."""
    full = numbers_in(section(text, "linear_attn_config"), "full_attn_layers") or ()
    return _at(_layers(text), [index - 1 for index in full])


def _exaone(text: Config) -> Sequence[Layer]:
    """`LLLG` over and over, and the last layer sees all; or a number, as others have it."""
    pattern, layers = text.get("sliding_window_pattern"), _layers(text)
    if not isinstance(pattern, str) or not pattern:
        return ()
    return [*("full" if pattern[index % len(pattern)] == "G" else "window" for index in range(layers - 1)), "full"]


def _listed(name: str, kind: Layer = "full") -> Rule:
    """The config counts the layers that are of that kind."""

    def rule(text: Config) -> Sequence[Layer]:
        indices = numbers_in(text, name)
        return () if indices is None else _at(_layers(text), indices, kind)

    return rule


def _flagged(name: str, flagged: Layer, others: Layer) -> Rule:
    """The config has a 1 or a 0 for each layer."""

    def rule(text: Config) -> Sequence[Layer]:
        return [flagged if flag else others for flag in numbers_in(text, name) or ()]

    return rule


def _grouped(text: Config) -> Sequence[Layer]:
    return _every(_layers(text), number(text, "layer_group_size") or 1, "state")


def _all(kind: Layer) -> Rule:
    return lambda text: _repeat(kind, _layers(text))


RULES: Mapping[str, Rule] = {
    "mamba": _all("state"),
    "mamba2": _all("state"),
    "falcon_mamba": _all("state"),
    "falcon_h1": _all("both"),
    "bailing_hybrid": _grouped,
    "bailing_moe_linear": _grouped,
    "exaone4": _exaone,
    "jamba": _jamba,
    "kimi_linear": _kimi_linear,
    "lfm2": _listed("full_attn_idxs"),
    "lfm2_moe": _listed("full_attn_idxs"),
    "llama4_text": _flagged("no_rope_layers", "chunk", "full"),
    "mimo_v2": _flagged("hybrid_layer_pattern", "window", "full"),
    "mimo_v2_flash": _flagged("hybrid_layer_pattern", "window", "full"),
    "zamba2": _listed("hybrid_layer_ids", "both"),
}
"""How families name their layers that do it in a way of their own; an empty answer where this config does not."""


# --- What attention keeps -------------------------------------------------------------------------------------------


def _attention(text: Config, family: str, heads: int, kinds: Sequence[Layer]) -> Sequence[Cache]:
    full = sum(kind in {"full", "both"} for kind in kinds)
    window, chunk = kinds.count("window"), kinds.count("chunk")
    if family in BLOCKS:
        return _blocks(text, heads)
    latent = number(text, "kv_lora_rank")
    if latent and family in LATENT:
        return _latent(text, latent, full * CACHES_A_LAYER.get(family, 1), kinds)
    wide, narrow = _heads_of(text, heads, is_window=False), _heads_of(text, heads, is_window=True)
    window_tokens = number(text, "sliding_window", "sliding_window_size")
    if window and (window_tokens is None or text.get("use_sliding_window") is False):
        full, window = full + window, 0
    chunk_tokens = number(text, "attention_chunk_size")
    if chunk and chunk_tokens is None:
        full, chunk = full + chunk, 0
    more = 1 if family in WINDOW_AND_ONE else 0
    return (
        Cache(full, "every token", *wide),
        Cache(window, "a window", *narrow, tokens=(window_tokens or 0) + more),
        Cache(chunk, "a chunk", *wide, tokens=chunk_tokens or 0),
        *_index_beside(text),
    )


def _index_beside(text: Config) -> Sequence[Cache]:
    """MiniMax M3: a small key of each token in its sparse layers (vllm/models/minimax_m3/common/indexer.py)."""
    sparse = section(text, "sparse_attention_config")
    if not (width := number(sparse, "sparse_index_dim")):
        return ()
    layers = sum(flag > 0 for flag in numbers_in(sparse, "sparse_attention_freq") or ())
    block = number(sparse, "sparse_block_size") or BLOCK_TOKENS
    words = f"{width} x {VALUE_BYTES} bytes of an index"
    return (Cache(layers, "every token", (Part(width * VALUE_BYTES, 1),), words, block_tokens=block),)


def _heads_of(text: Config, heads: int, *, is_window: bool) -> tuple[tuple[Part, ...], str]:
    """Keys and values of one token in one layer."""
    family, latent = family_of(text), number(text, "kv_lora_rank")
    kv_heads = _kv_heads(text, family, heads)
    rotary = number(text, "qk_rope_head_dim") or 0
    unfolded = (number(text, "qk_nope_head_dim") or 0) + rotary if latent else 0
    key = unfolded or number(text, "head_dim", "hidden_size_per_head", "attention_head_dim")
    key = key or (2 if family == "zamba2" else 1) * _head_width(text, heads)
    value = number(text, "v_head_dim")
    if family in {"mimo_v2", "mimo_v2_flash"}:
        if is_window:
            kv_heads = number(text, "swa_num_key_value_heads") or kv_heads
            key, value = number(text, "swa_head_dim") or key, number(text, "swa_v_head_dim") or value
        value = value or key
    elif family in {"gemma4_text", "gemma4_unified_text"}:
        if not is_window:
            key, kv_heads = _gemma4_heads(text, kv_heads)
        value = key
    elif family == "step3p5" and is_window:
        other = section(text, "attention_other_setting")
        kv_heads = number(other, "num_attention_groups") or kv_heads
        key = value = number(other, "head_dim") or key
    else:
        # Where keys and values, or layers, have heads of several widths, all count as the widest.
        key = value = max(key, value or 0, number(text, "global_head_dim") or 0)
    size = _value_bytes(text)
    each = (key + value) * size
    widths = f"2 x {kv_heads} KV heads x {key}" if key == value else f"{kv_heads} KV heads x ({key} + {value})"
    return (Part(kv_heads * each, kv_heads),), f"{widths} x {_bytes(size)}"


def _gemma4_heads(text: Config, kv_heads: int) -> tuple[int, int]:
    """Width and number of KV heads in layers that see all: said of each of them, or of all."""
    of_layers = [layer for layer in section(text, "per_layer_config").values() if isinstance(layer, Mapping)]
    if of_layers:
        widths, counts = ([number(layer, name) for layer in of_layers] for name in ("head_dim", "num_key_value_heads"))
        return max(width or needed(text, "head_dim") for width in widths), max(count or kv_heads for count in counts)
    fewer = number(text, "num_global_key_value_heads") if text.get("attention_k_eq_v") else None
    return needed(text, "global_head_dim"), fewer or kv_heads


def _head_width(text: Config, heads: int) -> int:
    if (width := needed(text, *WIDTH)) < heads:
        raise Refused(f"config.json says that {heads:,} heads share a width of {width:,}; choose another model")
    return width // heads


def _kv_heads(text: Config, family: str, heads: int) -> int:
    is_new_falcon = bool(text.get("new_decoder_architecture"))
    if family in {"falcon", "RefinedWeb", "RefinedWebModel", "gpt_bigcode"} and not is_new_falcon:
        # Its configs name heads that only the new decoder has.
        return 1 if text.get("multi_query", family == "gpt_bigcode") else heads
    if family == "chatglm" and text.get("multi_query_attention") is False:
        return heads
    return number(section(text, "attn_config"), "kv_n_heads") or number(text, *KV_HEADS) or heads


def _latent(text: Config, latent: int, count: int, kinds: Sequence[Layer]) -> Sequence[Cache]:
    """One compressed vector, whole on every card; sparse attention has a small key of each token beside it."""
    rotary = number(text, "qk_rope_head_dim") or 0
    index, size = number(text, "index_head_dim"), _value_bytes(text)
    if index and size == 1:
        part, words = PACKED_LATENT_BYTES, f"{PACKED_LATENT_BYTES} bytes"
    else:
        part, words = (latent + rotary) * size, f"({latent} + {rotary}) x {_bytes(size)}"
    caches = [Cache(count, "every token", (Part(part, 1),), words, block_tokens=LATENT_BLOCK_TOKENS)]
    if index:
        key, scales = index, -(-index // INDEX_BLOCK) * FLOAT32_BYTES
        words = f"({key} + {scales}) bytes of an index"
        layers = _indexed(text, len(kinds))
        caches.append(Cache(layers, "every token", (Part(key + scales, 1),), words, block_tokens=LATENT_BLOCK_TOKENS))
    return caches


def _indexed(text: Config, layers: int) -> int:
    """How many layers have an index of their own; others use the last one's (vllm/models/deepseek_v32/attention.py)."""
    pattern = text.get("index_topk_pattern")
    if isinstance(pattern, str):
        return layers - pattern[:layers].count("S")
    frequency, first = number(text, "index_topk_freq") or 1, _or_zero(text, "index_skip_topk_offset", 2)
    return sum(max(layer - first + 1, 0) % frequency == 0 for layer in range(layers))


def _value_bytes(text: Config) -> int:
    """Of a key or a value: what the checkpoint's own scales are for (`kv_cache_scheme`, `kv_cache_quant_algo`)."""
    said = section(text, "quantization_config")
    inner = section(said, "quantization") or said
    scheme = section(said, "kv_cache_scheme") or section(inner, "kv_cache_scheme")
    algorithm = inner.get("kv_cache_quant_algo") or said.get("kv_cache_quant_algo")
    is_eight = scheme.get("num_bits") == 8 and scheme.get("type", "float") == "float"  # noqa: PLR2004 - what it says
    return 1 if is_eight or algorithm == "FP8" else VALUE_BYTES


def _bytes(size: int) -> str:
    return f"{size} byte{'s' if size > 1 else ''}"


# --- Layers that differ one by one ----------------------------------------------------------------------------------

BLOCKS = frozenset({"nemotron-nas", "deci"})
"""Their `block_configs` say of each layer how many heads share a KV head, or that it has none (nemotron_nas.py)."""


def _heads_of_blocks(text: Config) -> Sequence[int | None]:
    """How many attention heads share a KV head, layer by layer; None in layers without attention."""
    blocks = text.get("block_configs")
    if not isinstance(blocks, list) or not 0 < len(blocks) <= LONGEST_LIST:
        raise Refused("config.json has no block_configs, which say what each layer keeps; choose another model")
    shared: list[int | None] = []
    for block in blocks:
        attention = section(block, "attention") if isinstance(block, Mapping) else {}
        is_none = attention.get("no_op") is True or attention.get("replace_with_linear") is True
        shared.append(None if is_none else needed(attention, "n_heads_in_group"))
    return shared


def _blocks(text: Config, heads: int) -> Sequence[Cache]:
    width = number(text, "head_dim") or _head_width(text, heads)
    shared = [group for group in _heads_of_blocks(text) if group is not None]
    each = 2 * width * _value_bytes(text)
    caches = []
    for group in sorted(set(shared), reverse=True):
        if heads % group:
            raise Refused(f"config.json has {shown(group)} of {heads} heads share a KV head; choose another model")
        kv = heads // group
        words = f"2 x {kv} KV heads x {width} x {_bytes(_value_bytes(text))}"
        caches.append(Cache(shared.count(group), "every token", (Part(kv * each, kv),), words))
    return caches


def _whisper(text: Config) -> Reading:
    """Its decoder, which keeps what it has said and what it has heard (whisper.py, `CrossAttentionSpec`)."""
    layers, heads = needed(text, "decoder_layers"), needed(text, "decoder_attention_heads")
    width = _head_width(text, heads)
    parts, words = (Part(2 * heads * width * VALUE_BYTES, heads),), f"2 x {heads} KV heads x {width} x 2 bytes"
    heard = number(text, "max_source_positions") or 1500
    caches = (
        Cache(layers, "every token", parts, words, block_tokens=BLOCK_TOKENS),
        Cache(layers, "the audio", parts, words, tokens=heard),
    )
    return Reading(layers, heads, caches, ((heads, "attention heads"),))


def _compressed(text: Config) -> Reading:
    """DeepSeek V4: a window of every layer; of groups of tokens one vector, and what is needed to make the next one.

    vllm/models/deepseek_v4: attention.py, compressor.py, whose states lie in windows of their own, and
    vllm/v1/attention/backends/mla/sparse_swa.py. Every fourth token's layers have an index, too.
    """
    layers, heads, width = _layers(text), needed(text, *ATTENTION_HEADS), needed(text, "head_dim")
    ratios = numbers_in(text, "compress_ratios")
    if ratios is None:
        rates = section(text, "compress_rates")
        ratios = tuple(_or_zero(rates, word, 0) for word in words_in(text, "layer_types") or ())
    if len(ratios) < layers:
        raise Refused("config.json does not say how each layer compresses its cache; choose another model")
    index = needed(text, "index_head_dim")
    row, words = width * VALUE_BYTES, f"{width} x {VALUE_BYTES} bytes"
    caches = [Cache(layers, "a window", (Part(row, 1),), words, tokens=needed(text, "sliding_window"))]
    for ratio in sorted({*ratios[:layers]} - {0, 1}):
        count, overlap = ratios[:layers].count(ratio), 2 if ratio == WITH_INDEX else 1
        kept = [(-(-row // ratio), f"{words} / {ratio}")]
        states = [2 * overlap * width * FLOAT32_BYTES]
        if ratio == WITH_INDEX:
            each = index + -(-index // INDEX_BLOCK) * FLOAT32_BYTES
            kept.append((-(-each // ratio), f"{each} bytes of an index / {ratio}"))
            states.append(2 * overlap * index * FLOAT32_BYTES)
        caches += [Cache(count, "every token", (Part(size, 1),), what) for size, what in kept]
        caches += [
            Cache(count, "a window", (Part(size, 1),), f"{size} bytes of states", tokens=overlap * ratio)
            for size in states
        ]
    whole = ((heads, "attention heads"),)
    return Reading(layers, heads, tuple(caches), whole, bound=PACKED, is_packed=True, least_capability=SPARSE_FROM)


WITH_INDEX = 4
PACKED = "The KV cache is a bound: how far pages of several sizes fill their blocks is not worked out"
READINGS: Mapping[str, Callable[[Config], Reading]] = {"whisper": _whisper, "deepseek_v4": _compressed}
"""Of families that share nothing with others."""


# --- What other layers keep -----------------------------------------------------------------------------------------


def _states(text: Config, family: str, kinds: Sequence[Layer]) -> Sequence[Cache]:
    count = sum(kind in {"state", "both"} for kind in kinds)
    if not count:
        return ()
    parts = tuple(STATES[family].shape(text))
    # Without attention there is no prefix caching, and a request has the running state alone.
    kept = 1 if family in ATTENTION_FREE else STATES[family].kept
    size = sum(part.total_bytes for part in parts)
    return (Cache(count, "states", parts, f"{size:,} bytes", tokens=kept, block_tokens=STATES[family].step),)


def _whole_states(text: Config) -> Sequence[tuple[int, str]]:
    """Heads of states are never copied; groups of them are, but only where there is one."""
    groups = number(text, *MAMBA_GROUPS)
    parts = STATES[family_of(text)].shape(text)
    shards = {part.shards for part in parts if part.shards != groups}
    return [
        *((count, "heads of states") for count in sorted(shards)),
        *([(groups, "groups of states")] if groups and groups > 1 else []),
    ]


MAMBA_WIDTH_FACTOR = ("mamba_expand", "expand")
MAMBA_HEADS = ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
MAMBA_HEAD = ("mamba_head_dim", "mamba_d_head", "mamba_headdim")
MAMBA_GROUPS = ("n_groups", "mamba_n_groups", "mamba_ngroups")
MAMBA_STATE = ("ssm_state_size", "mamba_d_state", "state_size")
MAMBA_KERNEL = ("conv_kernel", "mamba_d_conv")


def _mamba1(text: Config) -> Sequence[Part]:
    """`mamba1_state_shape`."""
    factor = number(text, "mamba_expand")
    inner = factor * needed(text, *WIDTH) if factor else needed(text, "intermediate_size")
    kernel, state = needed(text, *MAMBA_KERNEL), needed(text, *MAMBA_STATE)
    return (Part(inner * (kernel - 1 + state) * VALUE_BYTES, inner),)


def _mamba2(text: Config, state_bytes: int = VALUE_BYTES) -> Sequence[Part]:
    """`mamba2_state_shape`: groups are fewer than heads and lie on several cards as copies."""
    heads, groups = needed(text, *MAMBA_HEADS), number(text, *MAMBA_GROUPS) or 1
    state, kernel = needed(text, *MAMBA_STATE), needed(text, *MAMBA_KERNEL)
    factor = number(text, *MAMBA_WIDTH_FACTOR) or 2
    names = [name for name in MAMBA_HEAD if text.get(name) != "auto"]
    each = number(text, *names)
    if family_of(text) == "nemotron_h":
        inner = heads * needed(text, "mamba_head_dim")
    elif family_of(text) == "mamba2":
        each, inner = needed(text, "head_dim"), factor * needed(text, *WIDTH)
    else:
        inner = number(text, "mamba_d_ssm") or factor * needed(text, *WIDTH)
    each = each or inner // heads
    return (
        Part(inner * (kernel - 1) * VALUE_BYTES + heads * each * state * state_bytes, heads),
        Part(2 * groups * state * (kernel - 1) * VALUE_BYTES, groups),
    )


def _nemotron(text: Config) -> Sequence[Part]:
    """Its states are of 32 bits, unless it says otherwise (model_executor/models/config.py)."""
    return _mamba2(text, _state_bytes(text, "mamba_ssm_cache_dtype", FLOAT32_BYTES))


def _gated_delta(text: Config) -> Sequence[Part]:
    """`gated_delta_net_state_shape`."""
    keys, values = needed(text, "linear_num_key_heads"), needed(text, "linear_num_value_heads")
    key, value = needed(text, "linear_key_head_dim"), needed(text, "linear_value_head_dim")
    kernel = needed(text, "linear_conv_kernel_dim") - 1
    state = _state_bytes(text, "mamba_ssm_dtype", VALUE_BYTES)
    return (
        Part(values * value * (kernel * VALUE_BYTES + key * state), values),
        Part(2 * keys * key * kernel * VALUE_BYTES, keys),
    )


def _kimi_delta(text: Config) -> Sequence[Part]:
    """`kda_state_shape`; the state itself is of 32 bits."""
    linear = section(text, "linear_attn_config")
    heads, width = needed(linear, "num_heads"), needed(linear, "head_dim")
    kernel = needed(linear, "short_conv_kernel_size") - 1
    return (Part(heads * width * (3 * kernel * VALUE_BYTES + width * FLOAT32_BYTES), heads),)


def _linear(text: Config) -> Sequence[Part]:
    """`linear_attention_state_shape`."""
    heads = needed(text, *ATTENTION_HEADS)
    width = number(text, "head_dim") or _head_width(text, heads)
    return (Part(heads * width * width * VALUE_BYTES, heads),)


def _short_conv(text: Config) -> Sequence[Part]:
    """`short_conv_state_shape`."""
    width = number(text, "conv_dim") or needed(text, *WIDTH)
    return (Part(width * (needed(text, "conv_L_cache") - 1) * VALUE_BYTES, width),)


def _state_bytes(text: Config, name: str, otherwise: int) -> int:
    said = text.get(name)
    return {"float32": FLOAT32_BYTES, "bfloat16": VALUE_BYTES, "float16": VALUE_BYTES}.get(str(said), otherwise)


GATED_DELTA_TOKENS = 64
"""Where FlashInfer computes it, as on Hopper, it keeps a state for every so many tokens of a prompt; elsewhere 16 do
(layers/mamba/gdn/qwen_gdn_linear_attn.py)."""
STATES: Mapping[str, States] = {
    "mamba": States(_mamba1),
    "falcon_mamba": States(_mamba1),
    "jamba": States(_mamba1),
    "mamba2": States(_mamba2),
    "falcon_h1": States(_mamba2, kept=3),
    "granitemoehybrid": States(_mamba2, kept=3),
    "zamba2": States(_mamba2, kept=3),
    "nemotron_h": States(_nemotron, kept=3),
    "qwen3_next": States(_gated_delta, kept=3, step=GATED_DELTA_TOKENS),
    "qwen3_5_text": States(_gated_delta, kept=3, step=GATED_DELTA_TOKENS),
    "qwen3_5_moe_text": States(_gated_delta, kept=3, step=GATED_DELTA_TOKENS),
    "olmo_hybrid": States(_gated_delta, kept=3),
    "kimi_linear": States(_kimi_delta, kept=3),
    "bailing_hybrid": States(_linear),
    "bailing_moe_linear": States(_linear),
    "lfm2": States(_short_conv),
    "lfm2_moe": States(_short_conv),
}
