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
`blocks.on_machine.llama_cpp`. A replica is one machine: what needs several machines fits nowhere. Where a number is not
known, the larger one is taken: an offer that is wrongly passed over costs less than a machine that is rented and cannot
start.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from blocks.errors import Refused
from blocks.ports.fleet import POOLING, EngineSettings
from blocks.ports.market import Offer
from flows.policy.sizing import gguf
from flows.policy.sizing.architectures import VALUE_BYTES, Reading, encoder_heads, read_architecture
from flows.policy.sizing.kinds import check_kind, check_kind_of_gguf, is_encoder, is_encoder_in_gguf, usable_positions
from flows.policy.sizing.kv_cache import GIB, STEP_TOKENS, Caches, Line
from flows.policy.sizing.mistral import is_in_own_form
from flows.policy.sizing.model_config import (
    ATTENTION_HEADS,
    INNER_WIDTH,
    LAYERS,
    WIDTH,
    Config,
    check_context,
    language_model,
    longest_context,
    needed,
    number,
    section,
)
from flows.policy.sizing.quantisation import (
    CUT_FROM,
    capability_of,
    least_capability,
    method_of,
    quantised,
    quantised_groups,
    why_not_on,
)

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

LARGEST_STEP_TOKENS, LARGEST_STEP_FROM_GIB = 16_384, 160
"""What one step is on cards of that size (`max_num_batched_tokens` in vLLM's engine/arg_utils.py)."""
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

VLLM_DISK_BYTES = 32 * GIB
"""vLLM with torch and CUDA's libraries, 10 GiB installed and as much in the installer's cache, compiled graphs and
kernels, and logs: measured on processors 3.5 GB of packages, and CUDA's are three times that."""
CPP_DISK_BYTES = 1 * GIB
DISK_ROOM = 1.1
"""A file system keeps some of itself, and a file that came broken is fetched again beside the others."""

SHARD = re.compile(r"-\d+-of-\d+\.")


class KvCache(Protocol):
    """What the engine keeps of all requests that it answers at the same time, each at its longest."""

    def on_each_of(self, cards: int, step_tokens: int) -> int:
        """Bytes on the fullest of so many cards."""
        ...


@dataclass(frozen=True)
class ByLayers:
    """Of which each card has that of its layers, as llama.cpp gives them out."""

    total_bytes: int
    layers: int

    def on_each_of(self, cards: int, step_tokens: int) -> int:  # noqa: ARG002 - llama.cpp keeps every token anyway
        return -(-self.total_bytes * -(-self.layers // cards) // self.layers)


@dataclass(frozen=True)
class Share:
    """Something of which vLLM gives each card as much (tensor parallelism)."""

    count: int
    words: str
    may_be_copied: bool = False
    """On more cards than there are of it, each has a copy."""
    parts: int = 1
    """Into how many each of them can be cut on newer cards."""

    def goes_on(self, cards: int, capability: float = 0.0) -> bool:
        count = self.count * (self.parts if capability >= CUT_FROM else 1)
        return count % cards == 0 or (self.may_be_copied and cards % self.count == 0)

    def __str__(self) -> str:
        return f"{self.count} {self.words}"


@dataclass(frozen=True)
class Need:
    """What one replica takes, and how it can be divided among the cards of a machine."""

    weights_bytes: int
    kv: KvCache
    token_bytes: int
    """On every card, however many there are, for each token that is computed in one step."""
    sampling_bytes: int
    """On every card."""
    layers: int
    shares: tuple[Share, ...] | None
    """None where whole layers are given out instead of heads, as llama.cpp does."""
    step_tokens: int = STEP_TOKENS
    disk_bytes: int = 0
    """What it fetches and what the engine installs and compiles, without the machine's own system."""
    least_capability: float = 0.0
    """The compute capability below which NVIDIA's cards cannot run it."""
    is_bound: bool = False
    """What is kept of requests is at most this."""
    arithmetic: tuple[str, ...] = ()
    """How the numbers came about, a line each."""
    hint: str = ""
    """What a person should know of the model as one of its kind; empty where there is nothing."""

    @property
    def kv_bytes(self) -> int:
        """On a single card, of the usual size."""
        return self.kv.on_each_of(1, self.step_tokens)

    @property
    def activation_bytes(self) -> int:
        return self.activations(self.step_tokens)

    def activations(self, step_tokens: int) -> int:
        return step_tokens * self.token_bytes + self.sampling_bytes


@dataclass(frozen=True)
class Fit:
    """Whether an offer holds a replica."""

    fits: bool
    words: str
    """What is needed against what there is, or why it cannot be divided so."""
    needed_gib: float | None = None
    """On each card, or on the host; None where the model cannot be divided so."""


def size_model(
    config: Config,
    weights: Sequence[tuple[str, int]],
    index_total_bytes: int | None,
    engine: EngineSettings,
    indexed: Collection[str] = (),
) -> Need:
    """What a model takes in vLLM, from its config.json and its files' sizes.

    `index_total_bytes` is `metadata.total_size` of model.safetensors.index.json, None where there is none, and
    `indexed` are the files that it names. Experts
    count whole: each may be asked at any time. Images and sound have memory of their own, which is not counted.
    Encoders keep nothing of a request; a decoder that embeds keeps keys and values as one that generates does. Refused
    where config.json does not say enough, the model cannot be of that kind, or the context is longer than the model's.
    """
    hint = check_kind(config, [path for path, _ in weights], engine.kind)
    text = language_model(config)
    said = quantised(config, text)
    text = {**text, "quantization_config": said} if said else text
    check_context(engine, usable_positions(text, longest_context(text)))
    reading = _read_encoder(text) if is_encoder(text) else read_architecture(text)
    least = least_capability(said)
    weights_bytes, weights_line = _weights(
        weights, index_total_bytes, indexed, method_of(said) or _wider_than_served(text)
    )
    caches = Caches(reading.caches, engine, reading.is_packed)
    token_bytes, sampling_bytes, activation_line = _activations(text, engine)
    disk_bytes, disk_line = _disk(weights, VLLM_DISK_BYTES, "vLLM and what it compiles")
    return Need(
        weights_bytes,
        caches,
        token_bytes,
        sampling_bytes,
        reading.layers,
        _shares(reading, quantised_groups(said, text), encoder_heads(config)),
        step_tokens=_most_in_a_step(engine),
        disk_bytes=disk_bytes,
        least_capability=max(least, reading.least_capability),
        is_bound=bool(reading.bound),
        arithmetic=(
            weights_line,
            *(_cache_line(line, engine) for line in caches.lines()),
            *([] if reading.caches else ["KV cache: none, for an encoder keeps nothing of a request"]),
            *([reading.bound] if reading.bound else []),
            activation_line,
            disk_line,
            *([hint] if hint else []),
        ),
        hint=hint,
    )


def _read_encoder(text: Config) -> Reading:
    heads = needed(text, *ATTENTION_HEADS)
    return Reading(needed(text, *LAYERS), heads, (), ((heads, "attention heads"),))


def _most_in_a_step(engine: EngineSettings) -> int:
    """What is pooled over all its tokens is not computed in pieces, so that one step holds the longest input.

    (`is_chunked_prefill_supported` in vLLM's config/model.py; of decoders that pool by their last token it is a bound.)
    """
    return max(STEP_TOKENS, engine.context_tokens) if engine.kind in POOLING else STEP_TOKENS


def _shares(reading: Reading, groups: Mapping[int, int], encoder: int | None) -> tuple[Share, ...]:
    """What each card has to get a whole number of, or a whole copy."""
    shards = {
        part.shards for cache in reading.caches if cache.keeps != "states" for part in cache.parts if cache.layers
    }
    return (
        *(Share(count, words) for count, words in reading.whole),
        *(Share(count, "KV heads", may_be_copied=True) for count in sorted(shards) if count > 1),
        *(Share(count, "quantised groups", parts=parts) for count, parts in groups.items()),
        *([Share(encoder, "attention heads of the encoder")] if encoder else []),
    )


def _cache_line(line: Line, engine: EngineSettings) -> str:
    """How much layers of one kind keep; layers that only fill up a group are counted, since vLLM sets them aside."""
    kind, size = line.kind, _size(line.total_bytes)
    if kind.keeps == "states":
        page = f" in pages of {_size(line.page_bytes)}" if line.page_bytes != kind.on_each_of(1) else ""
        states = f"{kind.tokens} state{'s' if kind.tokens > 1 else ''} of {kind.words}{page}"
        return f"States: {line.layers} layers x {states} x {_requests(engine)} = {size}"
    name = {"a window": "KV cache in a window", "a chunk": "KV cache in a chunk", "the audio": "KV cache of the audio"}
    held = f"{line.blocks * line.block_tokens:,} tokens"
    if kind.keeps == "every token":
        held = f"{line.blocks * line.block_tokens // engine.parallel_requests:,} tokens x {_requests(engine)}"
    else:
        held += f" of {_requests(engine)}"
    padded = line.page_bytes - kind.on_each_of(1) * line.block_tokens
    filled = f", filled up by {_size(padded * line.layers * line.blocks)}" if padded > 0 else ""
    return f"{name.get(kind.keeps, 'KV cache')}: {line.layers} layers x {kind.words} x {held}{filled} = {size}"


def _disk(files: Sequence[tuple[str, int]], engine_bytes: int, engine: str) -> tuple[int, str]:
    """Every file of the mirror is fetched, also what the engine does not load."""
    fetched = sum(size for _, size in files)
    total = int(fetched * DISK_ROOM) + engine_bytes
    return total, (
        f"Disk: {_size(fetched)} in {len(files)} file{'s' if len(files) > 1 else ''} x {DISK_ROOM:g}"
        f" + {_size(engine_bytes)} for {engine} = {_size(total)}, beside the machine's own system"
    )


def size_gguf(header: bytes, file_bytes: int, engine: EngineSettings) -> Need:
    """What a model takes in llama.cpp, from the beginning of its GGUF file and the size of the file with all its parts.

    Sliding windows count as whole contexts, and recurrent layers as attention. Refused where the beginning does not say
    enough, the model cannot be of that kind, or the context is longer than the model's.
    """
    said = gguf.metadata(header)
    hint = check_kind_of_gguf(said, engine.kind)
    family = said.get("general.architecture", "")

    def said_number(name: str, otherwise: int | None = None) -> int:
        value = said.get(f"{family}.{name}", otherwise)
        # Where layers differ, the largest stands for all.
        value = max(value, default=0) if isinstance(value, tuple) else value
        if value is None:
            raise Refused(
                f"the first {len(header):,} bytes of the GGUF file do not say its {family or '<architecture>'}.{name};"
                f" read {gguf.ENOUGH_BYTES:,} bytes, and if that is not enough, convert the model anew"
            )
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refused(
                f"the GGUF file says that {family}.{name} is {value!r}, from which its memory cannot be told;"
                " choose another model"
            )
        return value

    check_context(engine, said_number("context_length"))
    layers, width, heads = (
        said_number("block_count"),
        said_number("embedding_length"),
        said_number("attention.head_count"),
    )
    kv_heads = said_number("attention.head_count_kv", heads)
    per_layer = said.get(f"{family}.attention.head_count_kv")
    in_all = layers * kv_heads
    if isinstance(per_layer, tuple) and len(per_layer) == layers:
        in_all = sum(int(some) if some > 0 else kv_heads for some in per_layer)
    # Where layers have more heads or fewer of them, the widest there can be count.
    by_layer = said.get(f"{family}.attention.head_count")
    fewest = min((some for some in by_layer if some > 0), default=heads) if isinstance(by_layer, tuple) else heads
    widest = width // int(fewest)
    key, value = said_number("attention.key_length", widest), said_number("attention.value_length", widest)
    context = _rounded_up(engine.context_tokens, CPP_CONTEXT_STEP)
    is_pooling, keeps_nothing = engine.kind in POOLING, is_encoder_in_gguf(said)
    kv_bytes = 0 if keeps_nothing else in_all * (key + value) * VALUE_BYTES * context * engine.parallel_requests
    tokens = said.get("tokenizer.ggml.tokens")
    words = said_number("vocab_size", tokens if isinstance(tokens, int) else LARGEST_VOCABULARY)
    inner = said_number("feed_forward_length", 4 * width)
    # What is pooled is computed in one step, as `blocks.on_machine.llama_cpp` starts it, and all of its tokens look at
    # each other: without flash attention that is a number for each pair and head.
    step_tokens = context if is_pooling else CPP_STEP_TOKENS
    pairs = heads * context if is_pooling else 0
    token_bytes = ((0 if keeps_nothing else words) + 3 * inner + 4 * width + pairs) * 4
    disk_bytes, disk_line = _disk([("", file_bytes)], CPP_DISK_BYTES, "llama.cpp")
    counted = f"{layers} layers x {kv_heads} KV heads" if in_all == layers * kv_heads else f"{in_all} KV heads"
    token = f"{counted} x ({key} + {value}) x {VALUE_BYTES} bytes"
    a_token = f"3 x {inner:,} + 4 x {width:,}"
    a_token = a_token if keeps_nothing else f"{words:,} words + {a_token}"
    a_token = f"{a_token} + at most {heads} heads x {context:,} tokens" if is_pooling else a_token
    step = f"{step_tokens} tokens x ({a_token}) x 4 bytes"
    return Need(
        file_bytes,
        ByLayers(kv_bytes, layers),
        token_bytes,
        0,
        layers,
        None,
        step_tokens=step_tokens,
        disk_bytes=disk_bytes,
        arithmetic=(
            f"Weights: the GGUF file = {_size(file_bytes)}",
            "KV cache: none, for an encoder keeps nothing of a request"
            if keeps_nothing
            else f"KV cache: {token} x {context:,} tokens x {_requests(engine)} = {_size(kv_bytes)}",
            f"Activations: {step} = {_size(step_tokens * token_bytes)} on each card",
            disk_line,
            *([hint] if hint else []),
        ),
        hint=hint,
    )


def fit(need: Need, offer: Offer) -> Fit:
    """Does one replica fit on one machine of that offer?

    Cards: weights and KV cache divided among them, activations and overhead on each. Processors: all of it in the
    host's memory. A memory that is not known holds nothing: no news is no pass. A disk that is not known is asked for.
    """
    if offer.disk_gib is not None and need.disk_bytes > offer.disk_gib * GIB:
        return Fit(
            fits=False,
            words=f"{_size(need.disk_bytes)} of disk are needed and {offer.cell} has {offer.disk_gib:,.1f} GiB for it;"
            " make room there, or choose another",
        )
    if not offer.accelerators:
        return _fit_on_processors(need, offer)
    if why := why_not_on(offer, need.least_capability):
        return Fit(fits=False, words=why)
    capability = capability_of(offer.accelerator) or 0.0
    if not _divides(need, offer.accelerators, capability):
        return Fit(fits=False, words=_why_not(need, offer.accelerators, capability))
    step_tokens = _step_tokens(need, offer)
    weights, kv = _largest_share(need, offer.accelerators), need.kv.on_each_of(offer.accelerators, step_tokens)
    activations = need.activations(step_tokens)
    overhead = OVERHEAD_BYTES + (COMMUNICATION_BYTES if offer.accelerators > 1 else 0)
    needed_gib = (need.weights_bytes * weights + kv + activations + overhead) / GIB
    if not offer.accelerator_gib:
        return Fit(
            fits=False,
            words=f"{needed_gib:.1f} GiB are needed on each {offer.accelerator} and {offer.cell} does not say how much"
            " memory it has; have it say so, or choose another",
            needed_gib=needed_gib,
        )
    usable = _usable_gib(offer)
    fits = needed_gib <= usable
    return Fit(
        fits,
        f"{needed_gib:.1f} GiB on each {offer.accelerator} {'fit' if fits else 'do not fit'} into the {usable:.1f} GiB"
        f" that an engine may use of its {offer.accelerator_gib:g}: weights {_size(need.weights_bytes * weights)},"
        f" KV cache {_at_most(need)}{_size(kv)}, activations {_size(activations)}, overhead {_size(overhead)}",
        needed_gib,
    )


def _step_tokens(need: Need, offer: Offer) -> int:
    """On the largest cards vLLM computes more at once."""
    is_largest = need.shares is not None and offer.accelerator_gib >= LARGEST_STEP_FROM_GIB
    return max(LARGEST_STEP_TOKENS, need.step_tokens) if is_largest else need.step_tokens


def _at_most(need: Need) -> str:
    return "at most " if need.is_bound else ""


def _usable_gib(offer: Offer) -> float:
    """What an engine may use of one card."""
    built_in = -(-offer.accelerator_gib // CHIP_GIB) * CHIP_GIB
    left = built_in if offer.accelerator.startswith(STACKED) else built_in * ECC_SHARE
    return min(left, offer.accelerator_gib) * REPORTED_SHARE * USABLE_SHARE


def _fit_on_processors(need: Need, offer: Offer) -> Fit:
    needed_gib = (need.weights_bytes + need.kv_bytes + need.activation_bytes + OVERHEAD_BYTES) / GIB
    if offer.host_gib is None:
        return Fit(
            fits=False,
            words=f"{needed_gib:.1f} GiB are needed and {offer.cell} does not say how much memory its machines have;"
            " have it say so, or choose another",
            needed_gib=needed_gib,
        )
    usable = offer.host_gib * USABLE_SHARE
    fits = needed_gib <= usable
    return Fit(
        fits,
        f"{needed_gib:.1f} GiB {'fit' if fits else 'do not fit'} into the {usable:.1f} GiB that an engine may use of"
        f" the host's {offer.host_gib:g}: weights {_size(need.weights_bytes)}, KV cache {_at_most(need)}"
        f"{_size(need.kv_bytes)}, activations {_size(need.activation_bytes)}, overhead {_size(OVERHEAD_BYTES)}",
        needed_gib,
    )


# --- How a model is divided among cards -----------------------------------------------------------------------------


def _divides(need: Need, cards: int, capability: float) -> bool:
    """Does each card get a whole number of everything that cannot be cut?"""
    if need.shares is None:
        return cards <= need.layers
    return all(share.goes_on(cards, capability) for share in need.shares)


def _why_not(need: Need, cards: int, capability: float) -> str:
    if need.shares is None:
        return f"{cards} cards cannot share {need.layers} layers; take {need.layers} or fewer"
    could = [str(count) for count in range(1, 2 * cards) if _divides(need, count, capability)]
    return f"{cards} cards cannot share {', '.join(map(str, need.shares))} evenly; take {', '.join(could)}"


def _largest_share(need: Need, cards: int) -> float:
    """Of the weights, what the fullest card has."""
    return 1 / cards if need.shares is not None else -(-need.layers // cards) / need.layers


# --- Weights and activations ----------------------------------------------------------------------------------------


def _weights(
    files: Sequence[tuple[str, int]], index_total_bytes: int | None, indexed: Collection[str], kind: str
) -> tuple[int, str]:
    """What vLLM would load (`_prepare_weights` in its model_loader/default_loader.py), and nothing in folders.

    Mistral's own form before all, safetensors before .bin, what the index names before the rest.
    """
    top = {path: size for path, size in files if "/" not in path}
    tensors = {path: size for path, size in top.items() if path.endswith(".safetensors") and "adapter" not in path}
    bins = {path: size for path, size in top.items() if path.startswith("pytorch_model") and path.endswith(".bin")}
    if own := [path for path, _ in files if is_in_own_form(path)]:
        chosen = {path: size for path, size in tensors.items() if path in own}
        if not chosen:
            raise Refused(f"vLLM would look for {own[0]} outside of its folder and find nothing; ignore that file")
    elif tensors and indexed:
        if lacking := sorted(set(indexed) - top.keys()):
            raise Refused(f"the index of the weights names {lacking[0]}, which is not there; mirror the model anew")
        chosen = {path: size for path, size in top.items() if path in indexed}
    else:
        chosen = _without_twins(tensors or bins)
    if not chosen:
        named = ", ".join(sorted(top)) or "nothing"
        raise Refused(
            f"the model has no .safetensors and no pytorch_model*.bin, only {named}; choose one that has, or serve its"
            " GGUF file with llama.cpp"
        )
    total = sum(chosen.values())
    counted = f"{len(chosen)} {'.bin' if not tensors else '.safetensors'} file{'s' if len(chosen) > 1 else ''}"
    # The index counts the tensors alone. One that is far from its files is wrong, and then the files count.
    if tensors and not own and index_total_bytes is not None and 0.9 * total <= index_total_bytes <= total:
        total, counted = index_total_bytes, f"{index_total_bytes:,} bytes by the index of {counted}"
    return total, f"Weights: {counted} = {_size(total)}{f' ({kind})' if kind else ''}"


def _without_twins(files: Mapping[str, int]) -> Mapping[str, int]:
    """Of weights in shards and in one file as well, the shards."""
    in_shards = {SHARD.sub(".", path) for path in files if SHARD.search(path)}
    return {path: size for path, size in files.items() if path not in in_shards}


def _wider_than_served(text: Config) -> str:
    is_wide = "float32" in (text.get("dtype"), text.get("torch_dtype"))
    return "float32, of which vLLM may need half" if is_wide else ""


def _activations(text: Config, engine: EngineSettings) -> tuple[int, int, str]:
    """The widest layer for one of a step's tokens, and the sampling of one token for each request."""
    width, of_dbrx = needed(text, *WIDTH), section(text, "ffn_config")
    inner = number(text, *INNER_WIDTH) or number(of_dbrx, *INNER_WIDTH) or 4 * width
    a_token = number(text, *EXPERTS_A_TOKEN) or number(of_dbrx, *EXPERTS_A_TOKEN) or 1
    if expert := number(text, "moe_intermediate_size", "expert_ffn_hidden_size"):
        inner = max(inner, expert * (a_token + _shared_experts(text)))
    elif number(text, "num_local_experts", "num_experts") or of_dbrx:
        inner *= a_token
    inner = max(inner, number(text, "intermediate_size_mlp") or 0)  # Llama 4's dense layers
    words = number(text, "vocab_size") or LARGEST_VOCABULARY
    token, sampling = (3 * inner + 4 * width) * VALUE_BYTES, engine.parallel_requests * words * LOGIT_BYTES
    sampled, step_tokens = f" + {_requests(engine)} x {words:,} words x {LOGIT_BYTES} bytes", _most_in_a_step(engine)
    if engine.kind in POOLING:
        sampling, sampled = 0, ""  # no token is chosen
    line = (
        f"Activations: {step_tokens:,} tokens in one step x (3 x {inner:,} + 4 x {width:,}) x {VALUE_BYTES} bytes"
        f"{sampled} = {_size(step_tokens * token + sampling)} on each card"
    )
    return token, sampling, line


EXPERTS_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")


def _shared_experts(text: Config) -> int:
    return number(text, "n_shared_experts", "num_shared_experts") or 0


def _requests(engine: EngineSettings) -> str:
    return f"{engine.parallel_requests} request{'s' if engine.parallel_requests > 1 else ''}"


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / (1 << 20):,.0f} MiB"
