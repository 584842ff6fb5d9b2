"""Can the model be what it is released as, and what does it take as that?"""

from collections.abc import Mapping

import gguf as files
import pytest

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings, ModelKind
from blocks.ports.market import Offer
from flows.policy.sizing.gguf import Value
from flows.policy.sizing.kinds import check_kind, check_kind_of_gguf
from flows.policy.sizing.sizing import Need, fit, size_gguf, size_model
from tests.tiny_gguf import tiny_bert, tiny_gguf

KINDS: tuple[ModelKind, ...] = ("chat", "completion", "embedding", "rerank")


def config(architecture: str, family: str = "", **more: object) -> dict[str, object]:
    return {"architectures": [architecture], "model_type": family, **more}


# Numbers as their config.json on the hub has them.
MINILM = config(
    "BertModel", "bert", num_hidden_layers=6, num_attention_heads=12, hidden_size=384, intermediate_size=1536,
    vocab_size=30_522, max_position_embeddings=512,
)  # fmt: skip
BGE_RERANKER = config(
    "XLMRobertaForSequenceClassification", "xlm-roberta", num_hidden_layers=24, num_attention_heads=16,
    hidden_size=1024, intermediate_size=4096, vocab_size=250_002, max_position_embeddings=8194, pad_token_id=1,
    id2label={"0": "LABEL_0"},
)  # fmt: skip
QWEN3_EMBEDDING = config(
    "Qwen3ForCausalLM", "qwen3", num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
    hidden_size=1024, intermediate_size=3072, vocab_size=151_669, max_position_embeddings=32_768,
)  # fmt: skip
POOLED = ("config.json", "modules.json")


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        (MINILM, {"embedding"}),
        (config("XLMRobertaModel"), {"embedding"}),
        (config("RobertaForMaskedLM", "roberta"), {"embedding"}),
        (config("ModernBertModel", "modernbert"), {"embedding"}),
        (config("LlamaBidirectionalModel"), {"embedding"}),
        (config("Qwen2Model", "qwen2"), {"embedding"}),
        ({"model_type": "bert"}, {"embedding"}),
        (BGE_RERANKER, {"rerank"}),
        (config("Qwen3ForSequenceClassification", num_labels=1), {"rerank"}),
        (config("BertForSequenceClassification", "bert"), set[str]()),
        (config("BertForSequenceClassification", "bert", num_labels=3), set[str]()),
        (config("LlamaForCausalLM", "llama"), {"chat", "completion", "embedding"}),
        (config("Qwen3ForCausalLM", classifier_from_token=["no", "yes"]), set(KINDS)),
        (config("ChatGLMModel", "chatglm"), set(KINDS)),
        ({}, set(KINDS)),
        (config("<script>"), set(KINDS)),
        ({"architectures": 7}, set(KINDS)),
        ({"architectures": []}, set(KINDS)),
    ],
)
def test_a_kind_that_a_model_cannot_be_is_refused(model: dict[str, object], fits: set[ModelKind]) -> None:
    """By the name of its architecture; where that says nothing, the engine will."""
    for kind in KINDS:
        if kind in fits:
            check_kind(model, ["config.json"], kind)
        else:
            with pytest.raises(Refused, match=r"config\.json says that the model is a "):
                check_kind(model, ["config.json"], kind)


def test_a_refusal_says_what_the_model_is() -> None:
    """And as what to release it, or that it is of no use here."""
    with pytest.raises(Refused, match="BertModel, which embeds and cannot be of kind 'chat'; release it with kind=emb"):
        check_kind(MINILM, (), "chat")
    with pytest.raises(Refused, match="which scores and cannot be of kind 'chat'; release it with kind=rerank"):
        check_kind(BGE_RERANKER, (), "chat")
    with pytest.raises(Refused, match=r"of 2 labels, which has no one score to rank by .* choose another model"):
        check_kind(config("BertForSequenceClassification"), (), "rerank")


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_model_that_was_made_to_embed_may_chat_and_that_is_said(kind: ModelKind) -> None:
    """Its config.json is that of the model it was made from."""
    assert "release it with kind=embedding" in check_kind(QWEN3_EMBEDDING, POOLED, kind)
    assert check_kind(QWEN3_EMBEDDING, ["config.json"], kind) == ""
    engine = EngineSettings(1024, 1, kind)
    sized = size_model(QWEN3_EMBEDDING, [("model.safetensors", 1 << 30), ("modules.json", 100)], None, engine)
    assert sized.hint == sized.arithmetic[-1] != ""


def test_a_model_without_a_pooling_may_embed_and_that_is_said() -> None:
    """There is a default of vLLM's; whether it is of use is another matter."""
    assert check_kind(QWEN3_EMBEDDING, POOLED, "embedding") == ""
    assert "nobody knows" in check_kind(QWEN3_EMBEDDING, ["config.json"], "embedding")


def need(model: dict[str, object], context: int, kind: ModelKind, parallel: int = 4) -> Need:
    weights = [("model.safetensors", 1 << 30), ("modules.json", 100)]
    return size_model(model, weights, None, EngineSettings(context, parallel, kind))


def test_an_encoder_keeps_nothing_of_a_request() -> None:
    """However many there are at once; what a step computes it needs, and chooses no token."""
    one, many = need(MINILM, 512, "embedding", 1), need(MINILM, 512, "embedding", 256)
    assert one.kv_bytes == many.kv_bytes == 0
    assert one.sampling_bytes == 0
    # 8,192 tokens of the widest layer, in 16 bits.
    assert one.activation_bytes == many.activation_bytes == 8192 * (3 * 1536 + 4 * 384) * 2
    assert "KV cache: none, for an encoder keeps nothing of a request" in one.arithmetic


def test_a_decoder_that_embeds_has_its_cache() -> None:
    """The pooling runner of vLLM computes it as any other: what falls away is the choice of a token."""
    embeds, chats = need(QWEN3_EMBEDDING, 4096, "embedding"), need(QWEN3_EMBEDDING, 4096, "chat")
    assert embeds.kv_bytes == chats.kv_bytes > 0
    assert embeds.sampling_bytes == 0 < chats.sampling_bytes


def test_one_step_holds_the_longest_input_that_is_pooled() -> None:
    """Also on the largest cards, whose steps are longer by themselves."""
    long, short = need(QWEN3_EMBEDDING, 32_768, "embedding"), need(QWEN3_EMBEDDING, 4096, "embedding")
    assert (long.step_tokens, short.step_tokens) == (32_768, 8192)
    card = Offer(
        cell="c", accelerator="B200", accelerators=1, accelerator_gib=180, host_gib=64, use_spot=False,
        dollars_per_hour=1.0,
    )  # fmt: skip
    room = 32_768 * long.token_bytes / (1 << 30)
    found, less = fit(long, card).needed_gib, fit(short, card).needed_gib
    assert found is not None
    assert less is not None
    assert found - less >= room / 2 > 0


def test_positions_that_an_encoder_cannot_use_do_not_count() -> None:
    """RoBERTa's first is the one after its padding's: 8,194 are good for 8,192 tokens."""
    need(BGE_RERANKER, 8192, "rerank")
    with pytest.raises(Refused, match=r"made for 8,192 tokens and 8,193 are asked for"):
        need(BGE_RERANKER, 8193, "rerank")


def test_a_gguf_says_what_it_pools_by() -> None:
    """None: it generates. The rank's: it ranks. Any other: it embeds; an encoder never generates."""
    llama: dict[str, Value] = {"general.architecture": "llama"}
    bert: dict[str, Value] = {"general.architecture": "bert"}
    assert {kind for kind in KINDS if _fits(llama, kind)} == {"chat", "completion"}
    assert {kind for kind in KINDS if _fits(bert, kind)} == set()
    for pooling, kind in ((1, "embedding"), (2, "embedding"), (3, "embedding"), (4, "rerank")):
        assert {one for one in KINDS if _fits(bert | {"bert.pooling_type": pooling}, one)} == {kind}
    decoder = llama | {"llama.pooling_type": 3}
    assert {kind for kind in KINDS if _fits(decoder, kind)} == {"chat", "completion", "embedding"}
    assert "release it with kind=embedding" in check_kind_of_gguf(decoder, "chat")
    assert {kind for kind in KINDS if _fits(llama | {"llama.pooling_type": 0}, kind)} == {"chat", "completion"}
    assert not _fits(llama | {"llama.attention.causal": False}, "chat")


def _fits(said: Mapping[str, Value], kind: ModelKind) -> bool:
    try:
        check_kind_of_gguf(said, kind)
    except Refused:
        return False
    return True


def test_a_real_gguf_is_sized_as_its_kind() -> None:
    """An encoder of 512 tokens keeps nothing and computes its input in one step; a chat model keeps all of it."""
    weights = tiny_bert()
    sized = size_gguf(weights, len(weights), EngineSettings(512, 4, "embedding"))
    assert (sized.kv_bytes, sized.step_tokens) == (0, 512)
    assert any(line.startswith("KV cache: none") for line in sized.arithmetic)
    assert size_gguf(tiny_gguf(), 1, EngineSettings(512, 4)).kv_bytes > 0
    with pytest.raises(Refused, match="holds a bert that generates nothing, so it cannot be of kind 'chat'"):
        size_gguf(weights, len(weights), EngineSettings(512, 4))
    weights = tiny_bert(ranks=True)
    size_gguf(weights, len(weights), EngineSettings(512, 4, "rerank"))
    weights = tiny_bert(pooling=files.PoolingType.NONE)
    with pytest.raises(Refused, match="a bert and names no pooling"):
        size_gguf(weights, len(weights), EngineSettings(512, 4, "embedding"))
