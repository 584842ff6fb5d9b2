"""Which offers can hold a model, and how much of it is what?

Sources of the arithmetic:

- KV cache: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
  https://arxiv.org/abs/2309.06180, section 3: a key and a value for each layer, KV head and token. What vLLM makes of
  it is in its `vllm/v1/kv_cache_interface.py`. Latent attention keeps one compressed vector for both: DeepSeek-V2,
  https://arxiv.org/abs/2405.04434, section 2.1.
- Activations and overhead: 49 starts of vLLM 0.19 on H100, measured in
  https://github.com/llm-d-incubation/llm-d-planner/blob/main/docs/accuracy/vllm-v0.19.0-accuracy-report.md
- What stays of a card: https://docs.vllm.ai/en/latest/configuration/engine_args.html (`gpu_memory_utilization`).

It holds for an engine that is started as it is sized: vLLM with `--max-model-len` and `--max-num-seqs` from the
EngineSettings, `--gpu-memory-utilization 0.9` and `--tensor-parallel-size` of all cards of the offer; llama.cpp as in
`blocks.llama_cpp`. A replica is one machine: what needs several machines fits nowhere. Where a number is not known, the
larger one is taken: an offer that is wrongly passed over costs less than a machine that is rented and cannot start.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blocks.errors import Refused
from blocks.ports import EngineSettings, Offer
from flows.policy import gguf

GIB = 1 << 30

USABLE_SHARE = 0.90
"""Of a card, for the engine. vLLM's default was 0.9 for years and is 0.92 since it counts CUDA graphs in; they are
counted here too, and the smaller share is right for both. Of a host's memory, the rest is for the system."""
CHIP_GIB = 4
"""Cards are built in steps of this size. Catalogs name some by what is built in and some by what is left of it: an L4
has 24 GiB on one cloud and 22.35 on another."""
REPORTED_SHARE = 0.97
"""Of a card's memory, what its driver reports: 79.2 of 80 GiB on H100, 14.6 of 15 on T4."""
ECC_SHARE = 15 / 16
"""Of GDDR memory, what error correction leaves: L4 has 22.5 of its 24 GiB, L40S 45 of 48, T4 15 of 16."""
STACKED = (
    "A30", "A100", "A800", "B100", "B200", "B300", "GB200", "GB300", "GH200", "H20", "H100", "H200", "H800",
    "MI100", "MI250", "MI300", "MI325", "MI350", "MI355", "P100", "V100",
)  # fmt: skip
"""How the names of accelerators begin whose memory (HBM) has room of its own for error correction."""

VALUE_BYTES = 2
"""Of one value in the KV cache and in activations: vLLM serves float32 in 16 bits too, and llama.cpp keeps f16."""
BLOCK_TOKENS = 16
"""vLLM gives a request's KV cache out in blocks of this many tokens."""
STEP_TOKENS = 8192
"""What vLLM computes in one step at most (`max_num_batched_tokens`): 8,192 on large cards, 2,048 on small ones."""
LOGIT_BYTES = 16
"""For each word that a request's next token could be, while it is sampled: measured, 2.2 GiB for 1,024 requests and
151,936 words, 3.7 GiB for 256,000."""
LARGEST_VOCABULARY = 262_144
OVERHEAD_BYTES = 1 * GIB
"""On each card beside the model: 0.3 to 0.5 GiB for CUDA and its libraries, about 0.5 for CUDA graphs of few requests.
On a host: the engine's program."""
COMMUNICATION_BYTES = 2 * GIB
"""On each of several cards, for what passes between them: 1.8 GiB measured on 2 and on 4."""

CPP_STEP_TOKENS = 512
"""What llama.cpp computes in one step (`n_ubatch`)."""
CPP_CONTEXT_STEP = 256
"""llama.cpp rounds the context up to this many tokens."""

LATENT = frozenset({
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2", "longcat_flash",
    "pangu_ultra_moe",
})  # fmt: skip
"""Model types whose compressed KV cache vLLM keeps as it is (its `is_deepseek_mla`); others it unfolds into heads."""
ALL_LAYERS_SLIDE = frozenset({"mistral", "mixtral"})
GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "vocab_size": 262_208,
    "sliding_window_pattern": 6,
}
"""What Gemma 3's config.json leaves out where it is what transformers' `Gemma3TextConfig` has by itself."""
NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
"""Where a model of several media keeps the language model's numbers."""

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
ATTENTION_HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
WIDTH = ("hidden_size", "n_embd", "d_model")
INNER_WIDTH = ("intermediate_size", "n_inner", "ffn_hidden_size")
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""The same number under the names that model families have for it, the usual one first."""

SHARD = re.compile(r"-\d{5}-of-\d{5}\.")


@dataclass(frozen=True)
class Heads:
    """What vLLM gives out to cards: whole heads (tensor parallelism)."""

    attention: int
    kv: int
    """1 for latent attention, whose cache every card keeps whole."""


@dataclass(frozen=True)
class Need:
    """What one replica takes, and how it can be divided among the cards of a machine."""

    weights_bytes: int
    kv_bytes: int
    """For all requests that are answered at the same time, each at its longest."""
    activation_bytes: int
    """On every card, however many there are."""
    layers: int
    heads: Heads | None
    """None where whole layers are given out instead of heads, as llama.cpp does."""
    groups: tuple[int, ...] = ()
    """How many quantised groups there are across each kind of layer; a card has to get a whole number of them."""
    arithmetic: tuple[str, ...] = ()
    """How the numbers came about, a line each."""


@dataclass(frozen=True)
class Fit:
    """Whether an offer holds a replica."""

    fits: bool
    words: str
    """What is needed against what there is, or why it cannot be divided so."""
    needed_gib: float | None = None
    """On each card, or on the host; None where the model cannot be divided so."""


def size_model(
    config: Mapping[str, object],
    weights: Sequence[tuple[str, int]],
    index_total_bytes: int | None,
    engine: EngineSettings,
) -> Need:
    """What a model takes in vLLM, from its config.json and its files' sizes.

    `index_total_bytes` is `metadata.total_size` of model.safetensors.index.json, None where there is none. Experts
    count whole: each may be asked at any time. Layers of linear attention count as if they kept all tokens, which is
    more than they do from about 1,000 tokens on. Images and sound have memory of their own, which is not counted.
    Refused where config.json does not say enough, or the context is longer than the model's.
    """
    text = _language_model(config)
    layers, heads = _needed(text, LAYERS), _needed(text, ATTENTION_HEADS)
    _check_context(engine, _longest_context(text))
    weights_bytes, weights_line = _weights(weights, index_total_bytes, text)
    kv_bytes, kv_heads, kv_lines = _kv_cache(text, layers, heads, engine)
    activation_bytes, activation_line = _activations(text, engine)
    return Need(
        weights_bytes,
        kv_bytes,
        activation_bytes,
        layers,
        Heads(heads, kv_heads),
        _groups(text),
        (weights_line, *kv_lines, activation_line),
    )


def size_gguf(header: bytes, file_bytes: int, engine: EngineSettings) -> Need:
    """What a model takes in llama.cpp, from the beginning of its GGUF file and the size of the file with all its parts.

    Sliding windows count as whole contexts, and recurrent layers as attention. Refused where the beginning does not say
    enough, or the context is longer than the model's.
    """
    said = gguf.metadata(header)
    family = said.get("general.architecture", "")

    def number(name: str, otherwise: int | None = None) -> int:
        value = said.get(f"{family}.{name}", otherwise)
        # Where layers differ, the largest stands for all.
        value = max(value, default=0) if isinstance(value, tuple) else value
        if value is None:
            raise Refused(
                f"the first {len(header):,} bytes of the GGUF file do not say its {family or '<architecture>'}.{name};"
                f" read {gguf.ENOUGH_BYTES:,} bytes, and if that is not enough, convert the model anew"
            )
        if not isinstance(value, int) or value < 1:
            raise Refused(
                f"the GGUF file says that {family}.{name} is {value!r}, from which its memory cannot be told;"
                " choose another model"
            )
        return value

    _check_context(engine, number("context_length"))
    layers, width, heads = number("block_count"), number("embedding_length"), number("attention.head_count")
    kv_heads = number("attention.head_count_kv", heads)
    per_layer = said.get(f"{family}.attention.head_count_kv")
    in_all = sum(int(some) or kv_heads for some in per_layer) if isinstance(per_layer, tuple) else layers * kv_heads
    key, value = number("attention.key_length", width // heads), number("attention.value_length", width // heads)
    context = _rounded_up(engine.context_tokens, CPP_CONTEXT_STEP)
    kv_bytes = in_all * (key + value) * VALUE_BYTES * context * engine.parallel_requests
    tokens = said.get("tokenizer.ggml.tokens")
    words = number("vocab_size", tokens if isinstance(tokens, int) else LARGEST_VOCABULARY)
    inner = number("feed_forward_length", 4 * width)
    activation_bytes = CPP_STEP_TOKENS * (words + 3 * inner + 4 * width) * 4
    counted = f"{layers} layers x {kv_heads} KV heads" if in_all == layers * kv_heads else f"{in_all} KV heads"
    token = f"{counted} x ({key} + {value}) x {VALUE_BYTES} bytes"
    step = f"{CPP_STEP_TOKENS} tokens x ({words:,} words + 3 x {inner:,} + 4 x {width:,}) x 4 bytes"
    return Need(
        file_bytes,
        kv_bytes,
        activation_bytes,
        layers,
        None,
        arithmetic=(
            f"Weights: the GGUF file = {_size(file_bytes)}",
            f"KV cache: {token}{_times(context, engine)} = {_size(kv_bytes)}",
            f"Activations: {step} = {_size(activation_bytes)} on each card",
        ),
    )


def fit(need: Need, offer: Offer) -> Fit:
    """Does one replica fit on one machine of that offer?

    Cards: weights and KV cache divided among them, activations and overhead on each. Processors: all of it in the
    host's memory. A memory that is not known holds nothing: no news is no pass.
    """
    if not offer.accelerators:
        return _fit_on_processors(need, offer)
    if not _divides(need, offer.accelerators):
        return Fit(fits=False, words=_why_not(need, offer.accelerators))
    weights, kv = _largest_shares(need, offer.accelerators)
    overhead = OVERHEAD_BYTES + (COMMUNICATION_BYTES if offer.accelerators > 1 else 0)
    needed = (need.weights_bytes * weights + need.kv_bytes * kv + need.activation_bytes + overhead) / GIB
    if not offer.accelerator_gib:
        return Fit(
            fits=False,
            words=f"{needed:.1f} GiB are needed on each {offer.accelerator} and {offer.cell} does not say how much"
            " memory it has; have it say so, or choose another",
            needed_gib=needed,
        )
    usable = _usable_gib(offer)
    fits = needed <= usable
    return Fit(
        fits,
        f"{needed:.1f} GiB on each {offer.accelerator} {'fit' if fits else 'do not fit'} into the {usable:.1f} GiB that"
        f" an engine may use of its {offer.accelerator_gib:g}: weights {_size(need.weights_bytes * weights)}, KV cache"
        f" {_size(need.kv_bytes * kv)}, activations {_size(need.activation_bytes)}, overhead {_size(overhead)}",
        needed,
    )


def _usable_gib(offer: Offer) -> float:
    """What an engine may use of one card."""
    built_in = -(-offer.accelerator_gib // CHIP_GIB) * CHIP_GIB
    left = built_in if offer.accelerator.startswith(STACKED) else built_in * ECC_SHARE
    return min(left, offer.accelerator_gib) * REPORTED_SHARE * USABLE_SHARE


def _fit_on_processors(need: Need, offer: Offer) -> Fit:
    needed = (need.weights_bytes + need.kv_bytes + need.activation_bytes + OVERHEAD_BYTES) / GIB
    if offer.host_gib is None:
        return Fit(
            fits=False,
            words=f"{needed:.1f} GiB are needed and {offer.cell} does not say how much memory its machines have;"
            " have it say so, or choose another",
            needed_gib=needed,
        )
    usable = offer.host_gib * USABLE_SHARE
    fits = needed <= usable
    return Fit(
        fits,
        f"{needed:.1f} GiB {'fit' if fits else 'do not fit'} into the {usable:.1f} GiB that an engine may use of the"
        f" host's {offer.host_gib:g}: weights {_size(need.weights_bytes)}, KV cache {_size(need.kv_bytes)}, activations"
        f" {_size(need.activation_bytes)}, overhead {_size(OVERHEAD_BYTES)}",
        needed,
    )


# --- How a model is divided among cards -----------------------------------------------------------------------------


def _divides(need: Need, cards: int) -> bool:
    """Does each card get whole attention heads, whole KV heads or whole copies of them, and whole quantised groups?"""
    if need.heads is None:
        return cards <= need.layers
    whole = all(count % cards == 0 for count in (need.heads.attention, *need.groups))
    return whole and (need.heads.kv % cards == 0 or cards % need.heads.kv == 0)


def _why_not(need: Need, cards: int) -> str:
    if need.heads is None:
        return f"{cards} cards cannot share {need.layers} layers; take {need.layers} or fewer"
    parts = [f"{need.heads.attention} attention heads", f"{need.heads.kv} KV heads"]
    parts += [f"{count} quantised groups" for count in need.groups]
    could = [str(count) for count in range(1, 2 * cards) if _divides(need, count)]
    return f"{cards} cards cannot share {', '.join(parts)} evenly; take {', '.join(could)}"


def _largest_shares(need: Need, cards: int) -> tuple[float, float]:
    """Of the weights and of the KV cache, what the fullest card has."""
    if need.heads is None:
        share = -(-need.layers // cards) / need.layers
        return share, share
    return 1 / cards, max(1, need.heads.kv // cards) / need.heads.kv


# --- What config.json says ------------------------------------------------------------------------------------------


def _language_model(config: Mapping[str, object]) -> Mapping[str, object]:
    """The numbers of the language model alone, with what stands around them where it says nothing itself."""
    for name in NESTED:
        if isinstance(inner := config.get(name), Mapping):
            around = {key: value for key, value in config.items() if key not in NESTED}
            return _language_model({**around, **{key: value for key, value in inner.items() if value is not None}})
    return {**GEMMA3, **config} if config.get("model_type") == "gemma3_text" else config


def _number(config: Mapping[str, object], names: Sequence[str]) -> int | None:
    """The first of the names that says something; of a list with one number a layer, the largest."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
            value = max(value)
        if value is None or value == 0:
            continue
        if not isinstance(value, int) or value < 0:
            raise Refused(f"config.json says that {name} is {value!r}, which is no whole number; choose another model")
        return value
    return None


def _needed(config: Mapping[str, object], names: Sequence[str]) -> int:
    if (number := _number(config, names)) is None:
        raise Refused(
            f"config.json of model type {config.get('model_type')!r} says nothing of {names[0]}, so nobody knows what"
            " the model takes; choose a model whose config.json does"
        )
    return number


def _rotary(text: Mapping[str, object]) -> tuple[Mapping[str, object], ...]:
    """How the model stretches its positions: one way, or one for each kind of layer."""
    said = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(said, Mapping):
        return ()
    return tuple(each for each in said.values() if isinstance(each, Mapping)) or (said,)


def _longest_context(text: Mapping[str, object]) -> int | None:
    """As vLLM derives it (`_get_and_verify_max_len` in its config/model.py); None where nothing is said."""
    longest = _number(text, CONTEXT)
    if longest is None or "gemma3" in str(text.get("model_type")):
        return longest
    for rotary in _rotary(text):
        kind = rotary.get("rope_type", rotary.get("type"))
        factor = rotary.get("factor")
        if kind in ("su", "longrope", "llama3") or not isinstance(factor, int | float):
            continue
        original = _number(rotary, ("original_max_position_embeddings",)) if kind == "yarn" else None
        return int((original or longest) * factor)
    return longest


def _check_context(engine: EngineSettings, longest: int | None) -> None:
    if longest is not None and engine.context_tokens > longest:
        raise Refused(
            f"the model was made for {longest:,} tokens and {engine.context_tokens:,} are asked for; choose a context"
            f" of {longest:,} tokens or fewer"
        )


def _weights(
    files: Sequence[tuple[str, int]], index_total_bytes: int | None, text: Mapping[str, object]
) -> tuple[int, str]:
    """What vLLM would load: safetensors before .bin, shards before one file of the same, nothing in folders."""
    top = {path: size for path, size in files if "/" not in path}
    tensors = {path: size for path, size in top.items() if path.endswith(".safetensors") and "adapter" not in path}
    plain = {path: size for path, size in tensors.items() if not path.startswith("consolidated")}
    shards = {path: size for path, size in plain.items() if SHARD.search(path)}
    bins = {path: size for path, size in top.items() if path.startswith("pytorch_model") and path.endswith(".bin")}
    chosen = shards or plain or tensors or bins
    if not chosen:
        named = ", ".join(sorted(top)) or "nothing"
        raise Refused(
            f"the model has no .safetensors and no pytorch_model*.bin, only {named}; choose one that has, or serve its"
            " GGUF file with llama.cpp"
        )
    total = sum(chosen.values())
    counted = f"{len(chosen)} {'.bin' if chosen is bins else '.safetensors'} file{'s' if len(chosen) > 1 else ''}"
    # The index counts the tensors alone. One that is far from its files is wrong, and then the files count.
    if chosen is not bins and index_total_bytes is not None and 0.9 * total <= index_total_bytes <= total:
        total, counted = index_total_bytes, f"{index_total_bytes:,} bytes by the index of {counted}"
    quantised = text.get("quantization_config")
    kind = quantised.get("quant_method", "quantised") if isinstance(quantised, Mapping) else None
    if kind is None and "float32" in (text.get("dtype"), text.get("torch_dtype")):
        kind = "float32, of which vLLM may need half"
    return total, f"Weights: {counted} = {_size(total)}{f' ({kind})' if kind else ''}"


def _sliding_layers(text: Mapping[str, object], layers: int) -> tuple[int, int]:
    """How many layers see only a window, and of how many tokens; none where it is not spelled out which."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        for kind, name in (("sliding_attention", "sliding_window"), ("chunked_attention", "attention_chunk_size")):
            if kind in kinds and (window := _number(text, (name,))):
                return kinds.count(kind), window
        return 0, 0
    window = _number(text, ("sliding_window",))
    if window is None or text.get("use_sliding_window") is False:
        return 0, 0
    if pattern := _number(text, ("sliding_window_pattern", "_sliding_window_pattern")):
        return layers - layers // pattern, window
    return (layers, window) if text.get("model_type") in ALL_LAYERS_SLIDE else (0, 0)


def _kv_cache(
    text: Mapping[str, object], layers: int, heads: int, engine: EngineSettings
) -> tuple[int, int, tuple[str, ...]]:
    """Its bytes, how many KV heads it is divided by, and the arithmetic."""
    context = _rounded_up(engine.context_tokens, BLOCK_TOKENS)
    latent, rotary = _number(text, ("kv_lora_rank",)), _number(text, ("qk_rope_head_dim",))
    if latent and rotary and text.get("model_type") in LATENT:
        each = (latent + rotary) * VALUE_BYTES
        kv_heads, what = 1, f"({latent} + {rotary}) x {VALUE_BYTES} bytes"
    else:
        kv_heads = _number(text, KV_HEADS) or heads
        unfolded = (_number(text, ("qk_nope_head_dim",)) or 0) + (rotary or 0) if latent else 0
        head = unfolded or _number(text, ("head_dim",)) or _needed(text, WIDTH) // heads
        # Where keys and values, or layers, have heads of several widths, all count as the widest.
        head = max(head, *(_number(text, (name,)) or 0 for name in ("v_head_dim", "global_head_dim")))
        each = 2 * kv_heads * head * VALUE_BYTES
        what = f"2 x {kv_heads} KV heads x {head} x {VALUE_BYTES} bytes"

    sliding, window = _sliding_layers(text, layers)
    # A window's request also holds the tokens of the step under way, and starts anywhere in a block.
    in_window = min(context, _rounded_up(window - 1 + STEP_TOKENS, BLOCK_TOKENS) + BLOCK_TOKENS)
    full = layers - sliding
    if full and sliding:
        # vLLM lets both kinds share one pool, in groups of as many layers as the rarer kind has; the last is filled up.
        group = min(full, sliding)
        full, sliding = _rounded_up(full, group), _rounded_up(sliding, group)
    total, lines = 0, []
    for name, count, tokens in (("KV cache", full, context), ("KV cache in a window", sliding, in_window)):
        if count:
            some = count * each * tokens * engine.parallel_requests
            lines.append(f"{name}: {count} layers x {what}{_times(tokens, engine)} = {_size(some)}")
            total += some
    return total, kv_heads, tuple(lines)


def _activations(text: Mapping[str, object], engine: EngineSettings) -> tuple[int, str]:
    """The widest layer for one step's tokens, and the sampling of one token for each request."""
    width = _needed(text, WIDTH)
    inner = _number(text, INNER_WIDTH) or 4 * width
    if expert := _number(text, ("moe_intermediate_size",)):
        inner = max(inner, expert * ((_number(text, ("num_experts_per_tok",)) or 1) + _shared_experts(text)))
    elif _number(text, ("num_local_experts", "num_experts")):
        inner *= _number(text, ("num_experts_per_tok",)) or 1
    words = _number(text, ("vocab_size",)) or LARGEST_VOCABULARY
    total = STEP_TOKENS * (3 * inner + 4 * width) * VALUE_BYTES + engine.parallel_requests * words * LOGIT_BYTES
    return total, (
        f"Activations: {STEP_TOKENS:,} tokens in one step x (3 x {inner:,} + 4 x {width:,}) x {VALUE_BYTES} bytes"
        f" + {_requests(engine)} x {words:,} words x {LOGIT_BYTES} bytes = {_size(total)} on each card"
    )


def _shared_experts(text: Mapping[str, object]) -> int:
    return _number(text, ("n_shared_experts", "num_shared_experts")) or 0


def _groups(text: Mapping[str, object]) -> tuple[int, ...]:
    """How many quantised groups stand across each kind of inner layer: vLLM refuses to cut one in two.

    As with https://huggingface.co/Qwen/Qwen2-VL-72B-Instruct-AWQ, whose 29,568 had to become 29,696 for 8 cards.
    """
    quantised = text.get("quantization_config")
    if not isinstance(quantised, Mapping):
        return ()
    block = quantised.get("weight_block_size") or quantised.get("group_size")
    size = max(block) if isinstance(block, list) else block
    if not isinstance(size, int) or size < 1:
        return ()  # -1 is one group for a whole column
    widths = (_number(text, (name,)) for name in ("intermediate_size", "moe_intermediate_size"))
    return tuple(width // size for width in widths if width and width % size == 0)


def _times(tokens: int, engine: EngineSettings) -> str:
    return f" x {tokens:,} tokens x {_requests(engine)}"


def _requests(engine: EngineSettings) -> str:
    return f"{engine.parallel_requests} request{'s' if engine.parallel_requests > 1 else ''}"


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / (1 << 20):,.0f} MiB"
