"""How much does vLLM set aside for what its layers keep of a request, on each card?

Its own planning, vLLM 0.33: `vllm/v1/kv_cache_interface.py` says what a layer keeps (`max_memory_usage_bytes`), and
`vllm/v1/core/kv_cache_planning.py` how layers share one pool of equal pages (`_get_kv_cache_groups_uniform_page_size`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blocks.ports.fleet import EngineSettings

GIB = 1 << 30
BLOCK_TOKENS = 16
"""vLLM gives a request's KV cache out in blocks of this many tokens."""
LATENT_BLOCK_TOKENS = 64
"""The kernels for latent attention take no smaller ones."""
LATENT_BESIDE_STATES_TOKENS = 128
STEP_TOKENS = 8192
"""What vLLM computes in one step at most (`max_num_batched_tokens`): 8,192 on large cards, 2,048 on small ones."""
STEPS_IN_FLIGHT = 2
"""The next step is scheduled while the last one still runs (`max_concurrent_batches`)."""
FILLED_UP_BELOW = 1.5
"""With fewer layers of the most common kind than so many times those of the rarest, all groups are made that large."""

PACKED_AT_MOST = 2.0
"""Pages of several sizes leave some of the blocks that they share empty. By vLLM's own planning, run for DeepSeek V4
Flash and Pro at 1,000 to a million tokens, blocks take up to 1.9 times what is held, in 16 bits; in 8 less."""

Keeps = Literal["every token", "a window", "a chunk", "states", "the audio"]


@dataclass(frozen=True)
class Part:
    """Bytes that lie on several cards in so many equal shards; on more cards than that, as copies."""

    total_bytes: int
    shards: int

    def on_each_of(self, cards: int) -> int:
        return -(-self.total_bytes // self.shards) * -(-self.shards // cards)


@dataclass(frozen=True)
class Cache:
    """What layers of one kind keep."""

    layers: int
    keeps: Keeps
    parts: tuple[Part, ...]
    """Of one layer: for each token that is kept, or for each state."""
    words: str
    """How the bytes of one layer come about."""
    tokens: int = 0
    """The window, the chunk or the audio; how many states are kept for a request."""
    block_tokens: int = BLOCK_TOKENS

    def on_each_of(self, cards: int) -> int:
        return sum(part.on_each_of(cards) for part in self.parts)

    def blocks(self, block_tokens: int, engine: EngineSettings, step_tokens: int) -> int:
        """For all requests that are answered at the same time, each at its longest.

        What is in flight is in flight for all of them together. A window's request may begin anywhere in a block.
        """
        requests, longest = engine.parallel_requests, engine.context_tokens
        in_flight = STEPS_IN_FLIGHT * step_tokens
        match self.keeps:
            case "every token":
                return requests * _up(longest, block_tokens)
            case "a window":
                kept = min(requests * (self.tokens - 1) + in_flight, requests * longest)
                return _up(kept, block_tokens) + 2 * requests - 1
            case "a chunk":
                kept = min(requests * self.tokens + in_flight, requests * longest)
                return _up(kept, block_tokens) + requests - 1
            case "the audio":
                return max(_up(step_tokens, block_tokens), requests * _up(self.tokens, block_tokens))
            case "states":
                return requests * self.tokens


@dataclass(frozen=True)
class Caches:
    """Everything that is kept, for an engine of those settings."""

    kinds: tuple[Cache, ...]
    engine: EngineSettings
    is_packed: bool = False
    """Pages of several sizes share each block, and none is filled up to another's."""

    def on_each_of(self, cards: int, step_tokens: int = STEP_TOKENS) -> int:
        return sum(line.total_bytes for line in self.lines(cards, step_tokens))

    def lines(self, cards: int = 1, step_tokens: int = STEP_TOKENS) -> "list[Line]":
        """What each kind takes on one of so many cards."""
        kept = [kind for kind in self.kinds if kind.layers]
        blocks = _block_tokens(kept, cards)
        pages = [_page(kind, blocks, cards) for kind in kept]
        if self.is_packed:
            return [
                Line(
                    kind, kind.layers, int(page * PACKED_AT_MOST), blocks, kind.blocks(blocks, self.engine, step_tokens)
                )
                for kind, page in zip(kept, pages, strict=True)
            ]
        if len({(kind.keeps, kind.tokens) for kind in kept}) <= 1:
            # One table of blocks for all: nothing is filled up.
            return [
                Line(kind, kind.layers, page, blocks, kind.blocks(blocks, self.engine, step_tokens))
                for kind, page in zip(kept, pages, strict=True)
            ]
        page, group = max(pages), _group(kept)
        lines = []
        for kind, own in zip(kept, pages, strict=True):
            # A smaller page holds more tokens, if it divides the largest; else it is filled up.
            tokens = blocks * (page // own) if kind.keeps != "states" and page % own == 0 else blocks
            count = kind.blocks(tokens, self.engine, step_tokens)
            lines.append(Line(kind, _up(kind.layers, group) * group, page, tokens, count))
        return lines


@dataclass(frozen=True)
class Line:
    """What layers of one kind take of one card."""

    kind: Cache
    layers: int
    """Filled up to whole groups."""
    page_bytes: int
    block_tokens: int
    blocks: int

    @property
    def total_bytes(self) -> int:
        return self.layers * self.page_bytes * self.blocks


def _block_tokens(kinds: Sequence[Cache], cards: int) -> int:
    """Beside states, as many as make a page no smaller than a state (`_align_hybrid_block_size`)."""
    attention = [kind for kind in kinds if kind.keeps != "states"]
    step = max((kind.block_tokens for kind in attention), default=BLOCK_TOKENS)
    states = [kind for kind in kinds if kind.keeps == "states"]
    state = max((kind.on_each_of(cards) for kind in states), default=0)
    if not state or not attention:
        return step
    step = LATENT_BESIDE_STATES_TOKENS if step > BLOCK_TOKENS else max(kind.block_tokens for kind in states)
    return step * _up(state, step * max(kind.on_each_of(cards) for kind in attention))


def _page(kind: Cache, block_tokens: int, cards: int) -> int:
    return kind.on_each_of(cards) * (1 if kind.keeps == "states" else block_tokens)


def _group(kinds: Sequence[Cache]) -> int:
    """How many layers each group has: as many as the rarest kind, or as the commonest where those are nearly alike."""
    fewest, most = min(kind.layers for kind in kinds), max(kind.layers for kind in kinds)
    return most if most < fewest * FILLED_UP_BELOW else fewest


def _up(number: int, step: int) -> int:
    """How many steps hold it."""
    return -(-number // step)
