"""What does Mistral's own params.json say? vLLM reads it before config.json where the weights have Mistral's own form.

As vLLM 0.33 has it: `get_config` in transformers_utils/config.py, and `adapt_config_dict` in its configs/mistral.py.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from blocks.errors import Refused
from flows.policy.sizing.model_config import Config, language_model, longest_context, needed, section, shown

PARAMS = "params.json"
OWN_FORM = "consolidated*.safetensors"
NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
}
OF_EXPERTS = {
    "num_experts": "num_local_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "expert_hidden_dim": "moe_intermediate_size",
}
LONGEST = 128_000
"""Where neither file says how long a context is."""


def is_in_own_form(path: str) -> bool:
    """By the file's name alone, in whatever folder: that is how vLLM decides."""
    return fnmatchcase(PurePosixPath(path).name, OWN_FORM)


def config_of(params: Config, config: Config) -> Config:
    """As config.json would say it; what params.json leaves out stands in `config`, empty where there is none."""
    text = language_model(config)
    said = {NAMES.get(name, name): value for name, value in params.items()}
    experts = section(params, "moe")
    said |= {name: experts[of] for of, name in OF_EXPERTS.items() if of in experts}
    whole = {**text, **said, "model_type": _family(params)}
    if params.get("max_position_embeddings") is None:
        whole["max_position_embeddings"] = longest_context(text) or LONGEST
    if isinstance(windows := params.get("sliding_window"), list):
        whole |= _by_layers(windows, needed(whole, "num_hidden_layers"))
    if quantisation := params.get("quantization"):
        whole["quantization_config"] = _quantised(quantisation)
    return whole


def _family(params: Config) -> str:
    """Latent attention is served as DeepSeek's."""
    if params.get("qk_nope_head_dim"):
        return "deepseek_v3"
    if params.get("model_type") == "mamba":
        return "mamba2"
    return "mixtral" if params.get("moe") else "mistral"


def _by_layers(windows: Sequence[object], layers: int) -> Config:
    """A window or none for each of a few layers, over and over."""
    sizes = [size for size in dict.fromkeys(map(shown, windows)) if size != shown(None)]
    if len(sizes) > 1 or not windows:
        raise Refused(
            f"{PARAMS} has windows of {', '.join(sizes) or 'no'} tokens, of which vLLM serves one; choose another model"
        )
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    one = next((window for window in windows if window is not None), None)
    return {"layer_types": kinds * (layers // len(kinds)), "sliding_window": one}


def _quantised(said: object) -> Config:
    if isinstance(said, Mapping):
        if said.get("qformat_weight") == "fp8_e4m3":
            return {"quant_method": "fp8"}
        if str(said.get("quant_method", "")).lower().replace("_", "-") == "compressed-tensors":
            return said
    raise Refused(
        f"{PARAMS} says that the model is quantised as {shown(said)}, which vLLM does not serve; choose another"
    )
