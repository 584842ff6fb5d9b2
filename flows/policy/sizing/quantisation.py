"""Which cards run a checkpoint as it is quantised, and what of it cannot be cut?

As vLLM 0.33 has it: `get_min_capability` of each file in `vllm/model_executor/layers/quantization` and, for
compressed-tensors, of each scheme there. https://docs.vllm.ai/en/latest/features/quantization/ has the table.
"""

from collections.abc import Mapping, Sequence

from blocks.errors import Refused
from blocks.ports.market import Offer
from flows.policy.sizing.model_config import ATTENTION_HEADS, WIDTH, Config, family_of, number, section, shown

LEAST = 7.5
"""What vLLM's own programs are compiled for, from https://docs.vllm.ai (installation, v0.21 and later)."""

CAPABILITY: Mapping[float, tuple[str, ...]] = {
    5.2: ("M60", "M4000"),
    6.0: ("P100",),
    6.1: ("P4", "P40"),
    7.0: ("V100", "TITANV"),
    7.5: ("T4", "RTX4000", "RTX5000", "RTX6000", "RTX8000", "RTX2080", "QUADRORTX"),
    8.0: ("A100", "A30", "A800", "PG506"),
    8.6: ("A10", "A10G", "A16", "A2", "A40", "A4000", "A4500", "A5000", "A6000", "RTX30", "RTXA"),
    8.9: ("L4", "L40", "L40S", "RTX40", "RTX6000-Ada", "RTX5000-Ada", "RTX4000-Ada", "RTX2000-Ada", "L20", "L2"),
    9.0: ("H100", "H200", "H800", "H20", "GH200"),
    10.0: ("B100", "B200", "GB200", "B300", "GB300"),
    12.0: ("RTX50", "RTXPRO", "RTX-PRO"),
}
"""How the names of NVIDIA's accelerators begin, by compute capability (https://developer.nvidia.com/cuda-gpus)."""

LEAST_OF_METHOD: Mapping[str, float] = {
    "awq": 7.5, "auto_awq": 7.5, "awq_marlin": 7.5, "gptq": 6.0, "auto_gptq": 6.0, "gptq_marlin": 7.5, "moe_wna16": 7.0,
    "auto-round": 6.0, "inc": 6.0, "fp8": 7.5, "fbgemm_fp8": 8.0, "deepseek_v4_fp8": 8.9, "mxfp4": 8.0,
    "gpt_oss_mxfp4": 8.0, "mxfp8": 8.0, "modelopt": 8.0, "modelopt_fp4": 7.5, "modelopt_mxfp8": 8.0,
    "modelopt_mixed": 8.0, "compressed-tensors": 7.0, "quark": 7.0, "torchao": 7.5, "experts_int8": 8.0,
    "fp_quant": 10.0, "humming": 7.5, "online": 7.5,
}  # fmt: skip
"""What vLLM serves (`QuantizationMethods`), and auto-round, which is its `inc`."""
MODELOPT = {"FP4": "modelopt_fp4", "MXFP8": "modelopt_mxfp8", "MIXED": "modelopt_mixed", "FP8": "modelopt"}
"""By a part of its algorithm's name; vLLM serves none of the others (`QUANT_ALGOS` of its quantization/modelopt.py)."""
EIGHT_BIT_ACTIVATIONS = 9.0
"""Compressed-tensors with weights of four bits and activations of eight (compressed_tensors_w4a8_fp8.py)."""
LEAST_OF_SCHEME = 7.5


def quantised(config: Config, text: Config) -> Config:
    """What config.json says of it, at its top or with the language model's numbers; empty where nothing is."""
    for place in (config, text):
        for name in ("quantization_config", "compression_config"):
            said = place.get(name)
            if said and not isinstance(said, Mapping):
                raise Refused(
                    f"config.json says in {name} what is no object but {shown(said)}, so nobody knows how the model is"
                    " quantised; choose another model"
                )
            if said:
                return section(place, name)
    return {}


def method_of(said: Config) -> str:
    """The method's name as vLLM has it; empty where there is none. Refused where vLLM serves none of that name."""
    if not said:
        return ""
    method = str(said.get("quant_method") or "").lower().replace("compressed_tensors", "compressed-tensors")
    if (
        method == "modelopt"
        or section(said, "producer").get("name") == "modelopt"
        or "quant_algo" in section(said, "quantization")
    ):
        algorithm = str((section(said, "quantization") or said).get("quant_algo") or "").upper()
        if not algorithm and not method:
            return ""  # of its weights nothing is quantised
        if algorithm:
            known = (served for part, served in MODELOPT.items() if part in algorithm)
            method = next(known, f"ModelOpt's {algorithm}")
    if method not in LEAST_OF_METHOD:
        raise Refused(
            f"config.json says that the model is quantised by {shown(method)}, which vLLM does not serve;"
            " choose a checkpoint quantised in another way, or not at all"
        )
    return method


def least_capability(said: Config) -> float:
    """The oldest cards that run such a checkpoint, by their compute capability."""
    method = method_of(said)
    if method == "compressed-tensors":
        return max(LEAST, *(_least_of_scheme(group) for group in _groups_of(said)), LEAST_OF_SCHEME)
    return max(LEAST, LEAST_OF_METHOD.get(method, LEAST))


def _least_of_scheme(group: Config) -> float:
    weights, inputs = section(group, "weights"), section(group, "input_activations")
    bits, of_inputs, kind = weights.get("num_bits"), inputs.get("num_bits"), weights.get("type")
    if (bits, of_inputs, inputs.get("type")) == (4, 8, "float") and kind == "int":
        return EIGHT_BIT_ACTIVATIONS
    return LEAST_OF_METHOD["mxfp4"] if (bits, kind) == (4, "float") and weights.get("group_size") == 32 else LEAST  # noqa: PLR2004 - as the format has it


def why_not_on(offer: Offer, least: float) -> str:
    """Why its cards cannot run what needs that compute capability; empty where they can, or where nobody knows."""
    has = capability_of(offer.accelerator)
    if has is None or has >= least:
        return ""
    what = "vLLM" if least == LEAST else "vLLM with a model built or quantised so"
    return f"{offer.accelerator} has compute capability {has:g} and {what} needs {least:g} or more; choose newer cards"


def capability_of(accelerator: str) -> float | None:
    """Of the longest of the names that the accelerator's begins with; None for other makers' and unknown ones."""
    name = accelerator.upper()
    known = [(len(start), number) for number, starts in CAPABILITY.items() for start in starts if _is_one(name, start)]
    return max(known)[1] if known else None


def _is_one(name: str, start: str) -> bool:
    """L4 and L4-24GB are L4s, L40S is none; but whatever begins with RTX30 is of that series."""
    rest = name[len(start) :] if name.startswith(start.upper()) else None
    return rest is not None and (start.startswith("RTX") or not rest[:1].isalnum())


# --- What cannot be cut ---------------------------------------------------------------------------------------------


def quantised_groups(said: Config, text: Config) -> Mapping[int, int]:
    """How many quantised groups stand across each kind of layer that cards share, and into how many each can be cut.

    VLLM refuses to cut one in two, as with https://huggingface.co/Qwen/Qwen2-VL-72B-Instruct-AWQ, whose 29,568 had to
    become 29,696 for 8 cards; but not the blocks of experts in `fp8` (`refine_fp8_moe_block_shape` in its
    fused_moe/oracle/fp8.py).
    """
    heads = number(text, *ATTENTION_HEADS) or 1
    head = number(text, "v_head_dim", "head_dim") or (number(text, *WIDTH) or 0) // heads
    experts = _width_of_experts(said, text)
    widths = [(number(text, name), name == experts) for name in INNER_WIDTHS]
    if not number(text, "kv_lora_rank"):
        widths.append((heads * head, False))
    found: dict[int, int] = {}
    for size in _group_sizes(said):
        for width, is_experts in widths:
            if width and width % size == 0:
                parts = size // LEAST_BLOCK if is_experts and size % LEAST_BLOCK == 0 else 1
                found[width // size] = min(parts, found.get(width // size, parts))
    return found


LEAST_BLOCK = 32
CUT_FROM = 8.9
"""Of the programs that cut the blocks of experts."""


def _width_of_experts(said: Config, text: Config) -> str | None:
    """The name of the number that only experts have; where one of them is for all tokens, it is cut as others are."""
    if method_of(said) != "fp8" or number(text, "n_shared_experts"):
        return None
    if number(text, "moe_intermediate_size"):
        return "moe_intermediate_size"
    return "intermediate_size" if family_of(text) == "minimax_m2" else None


def _group_sizes(said: Config) -> Sequence[int]:
    """Wherever the method keeps them; -1 is one group for a whole column."""
    places = [said, section(said, "quantization"), *(section(group, "weights") for group in _groups_of(said))]
    sizes = [_size(place.get(name)) for place in places for name in GROUP_NAMES]
    return [size for size in dict.fromkeys(sizes) if size > 0]


INNER_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
GROUP_NAMES = ("weight_block_size", "group_size", "block_structure")


def _size(value: object) -> int:
    values = value if isinstance(value, list) else [value]
    return max((each for each in values if isinstance(each, int) and not isinstance(each, bool)), default=0)


def _groups_of(said: Config) -> Sequence[Config]:
    """Of compressed-tensors: each names the layers that it is for."""
    groups = section(said, "config_groups")
    return [group for group in groups.values() if isinstance(group, Mapping)]
