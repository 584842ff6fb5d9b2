"""Can the model be what it is released as? Told from its own files, before anything is rented or started.

What vLLM 0.33 serves as what: `vllm/model_executor/models/registry.py` and `_SUFFIX_TO_DEFAULTS` in its
`vllm/config/model.py`. What llama.cpp does: `LLAMA_POOLING_TYPE_*` in its `include/llama.h`.
"""

from collections.abc import Collection, Mapping, Sequence

from blocks.errors import Refused
from blocks.ports.fleet import POOLING, ModelKind
from flows.policy.sizing.gguf import Value
from flows.policy.sizing.model_config import A_NAME, Config, family_of, number

ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta", "deberta-v2", "electra", "eurobert", "gte", "modernbert", "mpnet", "new",
    "nomic_bert", "roberta", "xlm-roberta", "xlm-roberta-xl",
})  # fmt: skip
"""Families that read a whole input at once and keep nothing of it: there is no KV cache, and nothing is generated."""
POSITIONS_FROM = frozenset({"camembert", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Encoders whose first position is the one after the padding's."""

GENERATES = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
CLASSIFIES = ("ForSequenceClassification", "ForRanking", "ClassificationModel")
EMBEDS = ("EmbeddingModel", "ForTextEncoding", "ForMaskedLM", "BidirectionalModel", "BertModel", "RobertaModel")
"""How the names of architectures end that vLLM serves by its pooling runner alone."""
EMBED_BY_NAME = frozenset({
    "Gemma2Model", "Gemma3TextModel", "GteModel", "GteNewModel", "LlamaModel", "MistralModel", "NewModel", "Qwen2Model",
    "Qwen3Model",
})  # fmt: skip
SENTENCE_TRANSFORMERS = ("modules.json", "1_Pooling/config.json")
"""Files of a model that was made to embed."""
TWO_LABELS = 2
"""How many transformers takes a classifier to have whose config names none."""

ENCODERS_IN_GGUF = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
    "nomic-bert-moe", "t5encoder",
})  # fmt: skip
POOLINGS = {1: "mean", 2: "cls", 3: "last", 4: "rank"}


def is_encoder(text: Config) -> bool:
    return family_of(text) in ENCODERS


def usable_positions(text: Config, longest: int | None) -> int | None:
    """Of those that the config names: some families begin to count after the padding."""
    if longest is None or family_of(text) not in POSITIONS_FROM:
        return longest
    return longest - 1 - (number(text, "pad_token_id") or 1)


def check_kind(config: Config, files: Collection[str], kind: ModelKind) -> str:
    """What a person should know of a model of that kind in vLLM; empty where nothing speaks against it.

    Refused where vLLM could not serve it as that.
    """
    name = _architecture(config) or family_of(config)
    if name.endswith(CLASSIFIES):
        return _check_classifier(config, name, kind)
    if name.endswith(EMBEDS) or name in EMBED_BY_NAME or family_of(config) in ENCODERS:
        if kind == "embedding":
            return ""
        raise Refused(
            f"config.json says that the model is a {name}, which embeds and cannot be of kind {kind!r}; release it with"
            f" kind=embedding"
        )
    if kind == "rerank":
        return _check_scores_at_all(config, name)
    is_made_to_embed = any(path in files for path in SENTENCE_TRANSFORMERS)
    if kind == "embedding" and not is_made_to_embed:
        return NO_POOLING.format(name=name)
    return HAS_POOLING if kind != "embedding" and is_made_to_embed else ""


NO_POOLING = (
    "The model is a {name} without a pooling of its own (modules.json): vLLM embeds by its last token, and whether it"
    " was trained for that nobody knows"
)
HAS_POOLING = (
    "The model has a pooling of its own (modules.json), so it is probably one that embeds: then release it with"
    " kind=embedding"
)


def _check_classifier(config: Config, name: str, kind: ModelKind) -> str:
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else number(config, "num_labels") or TWO_LABELS
    if count != 1:
        raise Refused(
            f"config.json says that the model is a {name} of {count} labels, which has no one score to rank by and"
            f" cannot be of kind {kind!r}; choose another model"
        )
    if kind != "rerank":
        raise Refused(
            f"config.json says that the model is a {name}, which scores and cannot be of kind {kind!r}; release it with"
            f" kind=rerank"
        )
    return ""


def _check_scores_at_all(config: Config, name: str) -> str:
    """Where no head is named that does: a model that generates may score by the likelihood of two tokens."""
    if config.get("classifier_from_token"):
        return ""
    if name.endswith(GENERATES):
        raise Refused(
            f"config.json says that the model is a {name}, which has no head that scores and cannot be of kind"
            f" 'rerank'; choose one whose architecture ends in ForSequenceClassification"
        )
    return f"Whether a {name or 'model of no named architecture'} can rank is not known here"


def _architecture(config: Config) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, Sequence) and not isinstance(named, str) and named else ""
    return first if isinstance(first, str) and A_NAME.fullmatch(first) else ""


def is_encoder_in_gguf(said: Mapping[str, Value]) -> bool:
    family = said.get("general.architecture")
    return family in ENCODERS_IN_GGUF or said.get(f"{family}.attention.causal") is False


def check_kind_of_gguf(said: Mapping[str, Value], kind: ModelKind) -> str:
    """What a person should know of a model of that kind in llama.cpp; empty where nothing speaks against it.

    Refused where llama.cpp could not serve it as that.
    """
    family = said.get("general.architecture")
    shown = family if isinstance(family, str) and A_NAME.fullmatch(family) else "model of no known architecture"
    number_of_pooling = said.get(f"{family}.pooling_type")
    pooling = POOLINGS.get(number_of_pooling, "") if isinstance(number_of_pooling, int) else ""
    fitting: ModelKind = "rerank" if pooling == "rank" else "embedding"
    if kind in POOLING and not pooling:
        raise Refused(
            f"the GGUF file holds a {shown} and names no pooling ({shown}.pooling_type), without which llama.cpp "
            f"neither embeds nor ranks; convert the model anew with its pooling, or release it with kind=chat"
        )
    if kind in POOLING and kind != fitting:
        raise Refused(
            f"the GGUF file holds a {shown} that pools by {pooling}, and that is no model of kind {kind!r}; release it "
            f"with kind={fitting}"
        )
    if kind not in POOLING and (is_encoder_in_gguf(said) or fitting == "rerank"):
        raise Refused(
            f"the GGUF file holds a {shown} that generates nothing, so it cannot be of kind {kind!r}; release it with"
            f" kind={fitting}"
        )
    if kind not in POOLING and pooling:
        return f"The GGUF file pools by {pooling}, so it probably embeds: then release it with kind=embedding"
    return ""
