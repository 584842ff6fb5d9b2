"""What does a model's config.json say? Somebody else wrote it: each number is checked before anything is made of it."""

import re
from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import TypeGuard, cast

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings

Config = Mapping[str, object]

A_NAME = re.compile(r"[\w.+-]{1,64}", re.ASCII)
"""It comes into words that people read as markdown."""
LARGEST_NUMBER = 1 << 40
"""No model has more of anything: what is larger is nonsense, or meant to be."""

LONGEST_LIST = 10_000
"""No model has more layers, and no list has more than one entry a layer."""

AT_A_GLANCE = Repr()
AT_A_GLANCE.maxstring = AT_A_GLANCE.maxlong = AT_A_GLANCE.maxother = 60

NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
"""Where a model of several media keeps the language model's numbers."""

SAID_FOR_ALL = ("dtype", "torch_dtype")
"""What a model of several media may say once, at its top."""

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
ATTENTION_HEADS = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads")
KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
"""In the order in which vLLM asks for them (`get_total_num_kv_heads` in its model_arch_config_convertor.py)."""
WIDTH = ("hidden_size", "n_embd", "d_model")
INNER_WIDTH = ("intermediate_size", "n_inner", "ffn_hidden_size", "decoder_ffn_dim")
CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Of which vLLM takes the smallest (`derive_max_model_len_and_key`); `model_max_length` outdoes them all."""
STRETCHED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Ways to stretch positions whose models state the stretched length."""

GEMMA4: Config = {"head_dim": 256, "global_head_dim": 512, "sliding_window": 512}
FAMILY_DEFAULTS: Mapping[str, Config] = {
    "gemma2": {"head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "vocab_size": 262_208,
    },
    "gemma3n_text": {"head_dim": 256, "num_kv_shared_layers": 15, "sliding_window": 512},
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "gpt_oss": {"head_dim": 64, "sliding_window": 128},
    "llama4_text": {"head_dim": 128, "attention_chunk_size": 8192},
    "cohere2": {"sliding_window": 4096},
    "jamba": {"mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4},
    "step3_text": {"num_kv_heads": 1, "head_dim": 256},
}
"""What config.json may leave out because transformers' class for the family has it by itself."""


def language_model(config: Config) -> Config:
    """The numbers of the language model alone, as vLLM reads them: what another part has is never taken for its own."""
    around: dict[str, object] = {}
    while (inner := next((config[name] for name in NESTED if isinstance(config.get(name), Mapping)), None)) is not None:
        around |= {name: config[name] for name in SAID_FOR_ALL if config.get(name) is not None}
        config = cast("Config", inner)
    unsaid = {name: value for name, value in around.items() if config.get(name) is None}
    return {**FAMILY_DEFAULTS.get(family_of(config), {}), **config, **unsaid}


def family_of(config: Config) -> str:
    """Its `model_type`; empty where it has none, or what stands there is no name."""
    family = config.get("model_type")
    return family if isinstance(family, str) and A_NAME.fullmatch(family) else ""


def number(config: Config, *names: str) -> int | None:
    """The first of the names that says something; of a list with one number a layer, the largest."""
    for name in names:
        value = _short(config, name)
        if isinstance(value, list) and value and all(_is_whole(each) for each in value):
            value = max(value)
        if value is None or value == 0:
            continue
        if not _is_whole(value) or not 0 < value <= LARGEST_NUMBER:
            raise Refused(
                f"config.json says that {name} is {shown(value)}, which is no whole number from 1 to"
                f" {LARGEST_NUMBER:,}; choose another model"
            )
        return value
    return None


def shown(value: object) -> str:
    """As much of it as a person reads at a glance, and no more of it is looked at, however long or deep it is."""
    return AT_A_GLANCE.repr(value)[:60]


def needed(config: Config, *names: str) -> int:
    """One number for all layers: where heads or widths differ, none of them says what the others make of it."""
    if name := next((name for name in names if isinstance(_short(config, name), list)), None):
        raise Refused(
            f"config.json says that {name} is {shown(config[name])}, where one number is for all layers; choose another"
            " model"
        )
    if (found := number(config, *names)) is None:
        raise Refused(
            f"config.json of model type {family_of(config)!r} says nothing of {names[0]}, so nobody knows what"
            " the model takes; choose a model whose config.json does"
        )
    return found


def words_in(config: Config, name: str, letters: Mapping[str, str] | None = None) -> tuple[str, ...] | None:
    """A list of words, one a layer, or a text of one letter each; None where there is none."""
    value = _short(config, name)
    if letters is not None and isinstance(value, str) and value and all(letter in letters for letter in value):
        return tuple(letters[letter] for letter in value)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    if value is None or value in ([], ""):
        return None
    raise Refused(f"config.json says in {name} what is no list of words, one a layer; choose another model")


def numbers_in(config: Config, name: str) -> tuple[int, ...] | None:
    """A list of small whole numbers; None where there is none."""
    value = _short(config, name)
    if isinstance(value, list) and all(_is_whole(each) and 0 <= each <= LARGEST_NUMBER for each in value):
        return tuple(value)
    if value is None:
        return None
    raise Refused(f"config.json says in {name} what is no list of whole numbers; choose another model")


def _short(config: Config, name: str) -> object:
    value = config.get(name)
    if isinstance(value, list | str) and len(value) > LONGEST_LIST:
        raise Refused(
            f"config.json has {len(value):,} entries in {name}, and no model has as many layers; choose another"
        )
    return value


def section(config: Config, name: str) -> Config:
    """A part of the config that is one itself; empty where there is none."""
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


# --- How long a context the model was made for ----------------------------------------------------------------------


def check_context(engine: EngineSettings, longest: int | None) -> None:
    if longest is not None and engine.context_tokens > longest:
        raise Refused(
            f"the model was made for {longest:,} tokens and {engine.context_tokens:,} are asked for; choose a context"
            f" of {longest:,} tokens or fewer"
        )


def longest_context(text: Config) -> int | None:
    """As vLLM derives it (`_get_and_verify_max_len` in its config/model.py); None where nothing is said."""
    stated = [found for name in CONTEXT if (found := _length(text, name)) is not None]
    longest = _length(text, "model_max_length") or min(stated, default=None)
    if longest is None or "gemma3" in family_of(text):
        return longest
    factor = 1.0
    for rotary in _rotary(text):
        said, kind = rotary.get("factor"), rotary.get("rope_type", rotary.get("type"))
        if not isinstance(said, int | float) or isinstance(said, bool) or kind in STRETCHED_ALREADY:
            continue
        if not 0 < said <= LARGEST_NUMBER:
            raise Refused(f"config.json stretches positions {shown(said)} times; choose another model")
        factor = float(said)
    return int(longest * factor)


def _length(text: Config, name: str) -> int | None:
    """Tokenizers write 10^30 for «no limit», and that is none."""
    value = text.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and value > LARGEST_NUMBER:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return number({name: value}, name)


def _rotary(text: Config) -> Sequence[Config]:
    """How the model stretches its positions: one way, or one for each kind of layer."""
    said = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(said, Mapping):
        return ()
    return tuple(each for each in said.values() if isinstance(each, Mapping)) or (said,)
