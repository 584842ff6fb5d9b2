"""Which files are weights, which of them run code when they are loaded, and which of those nobody needs."""

import pytest

from blocks.errors import Refused
from blocks.ports.hub import Model, ModelFile
from flows.policy.mirrors.mirror import Selection, what_to_mirror
from flows.policy.mirrors.weights import code_named_in, may_name_code


def selected(*paths: str, is_large: bool = True, pickle_weights: bool = False, python_code: bool = False) -> Selection:
    files = (ModelFile(path, 1000, "5" * 64 if is_large else None, "6" * 40) for path in paths)
    model = Model("a/b", "c" * 40, tuple(files), None)
    return what_to_mirror(model, pickle_weights=pickle_weights, python_code=python_code)


def paths(*names: str, pickle_weights: bool = False, python_code: bool = False) -> list[str]:
    return [file.path for file in selected(*names, pickle_weights=pickle_weights, python_code=python_code).files]


def left_out(*names: str) -> dict[str, str]:
    return dict(selected(*names).left_out)


UNSAFE = [
    *("pytorch_model.bin", "PYTORCH_MODEL.BIN", "model.PT", "model.pth", "last.ckpt", "model.pt2", "model.ot"),
    *("vectors.npy", "vectors.npz", "model.h5", "tf_model.h5", "model.keras", "model.nemo", "saved_model.pb"),
    *("model.pkl", "model.pkl.gz", "model.Pickle.XZ", "weights.joblib", "weights.pt.zst", "weights.zip", "all.tar.gz"),
    *("2_Dense/pytorch_model.bin", "model.mar", "model.engine", ".bin"),
]


@pytest.mark.parametrize("is_large", [True, False], ids=["large-file storage", "git"])
@pytest.mark.parametrize("path", UNSAFE)
def test_what_runs_code_when_it_is_loaded_is_for_whoever_asks(path: str, is_large: bool) -> None:  # noqa: FBT001 - of a table
    """Whatever its case, whatever it is packed in, and wherever the hub stores it."""
    with pytest.raises(Refused, match="pickle_weights") as refusal:
        selected(path, "config.json", is_large=is_large)
    assert path in str(refusal.value)
    assert {file.path for file in selected(path, "config.json", is_large=is_large, pickle_weights=True).files} == {
        path,
        "config.json",
    }


@pytest.mark.parametrize(
    ("unsafe", "safe"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("PyTorch_Model.BIN", "model.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "model-00001-of-00003.safetensors"),
        ("tf_model.h5", "model.safetensors"),
        ("rust_model.ot", "model.safetensors"),
        ("pytorch_model.fp32-00001-of-00002.bin", "model.fp32-00001-of-00002.safetensors"),
        ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
        ("2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"),
        ("v1-5-pruned.ckpt", "v1-5-pruned.safetensors"),
        ("pytorch_model.bin", "tiny-q4.gguf"),
        ("original/consolidated.00.pth", "model-00001-of-00002.safetensors"),
        ("consolidated.01.pth", "model.safetensors"),
    ],
)
def test_the_same_weights_in_a_safe_form_are_preferred(unsafe: str, safe: str) -> None:
    """Left out and named, unless somebody asks for them."""
    assert paths(safe, unsafe) == [safe]
    assert "the same weights" in left_out(safe, unsafe)[unsafe]
    assert set(paths(safe, unsafe, pickle_weights=True)) == {safe, unsafe}


@pytest.mark.parametrize(
    "other",
    ["2_Dense/pytorch_model.bin", "medusa_lm_head.pt", "value_head.bin", "adapter/pytorch_model.bin", "x/tf_model.h5"],
)
def test_other_weights_are_not_dropped(other: str) -> None:
    """Without them the model would answer, and not be the one that was trained."""
    with pytest.raises(Refused, match=f"{other}; choose .*pickle_weights"):
        selected("model.safetensors", other)


@pytest.mark.parametrize(
    "path",
    [
        *("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth"),
        *("rng_state_3.pth", "random_states_0.pkl", "checkpoint-100/optimizer.pt"),
        *("global_step10/mp_rank_00_model_states.pt", "global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_the_state_of_a_training_is_no_weights(path: str) -> None:
    """No engine loads it, so leaving it out harms nobody."""
    assert paths("model.safetensors", path) == ["model.safetensors"]
    assert "training" in left_out("model.safetensors", path)[path]


@pytest.mark.parametrize(
    ("path", "beside"),
    [
        ("openvino_model.bin", "openvino_model.xml"),
        ("openvino/openvino_decoder_model.bin", "openvino/openvino_decoder_model.xml"),
        ("model.bin", "vocabulary.txt"),
        ("model.bin", "shared_vocabulary.json"),
        ("ct2/model.bin", "ct2/source_vocabulary.json"),
    ],
)
def test_numbers_of_other_engines_are_no_pickles(path: str, beside: str) -> None:
    """OpenVINO's and CTranslate2's; known by what lies beside them, without which nobody could read them."""
    assert set(paths(path, beside)) == {path, beside}
    with pytest.raises(Refused, match="pickle_weights"):
        selected(path, f"elsewhere/{beside}")


def test_a_model_of_very_many_files_is_judged_as_one_of_few() -> None:
    """To look at each file beside each other one took a hub's list of ten thousand ten minutes."""
    many = [f"{number % 7}/{number}.bin" for number in range(30_000)]
    with pytest.raises(Refused, match="weights only as pickles"):
        selected("model.safetensors", *many)
    assert paths("model.safetensors", *(f"{path}.py" for path in many)) == ["model.safetensors"]


@pytest.mark.parametrize("path", ["tokenizer.model", "config.json", "merges.txt", "model.onnx", "LICENSE", "bin/x.txt"])
def test_what_holds_no_code_is_mirrored(path: str) -> None:
    """Nobody has to ask for it."""
    assert paths(path) == [path]


@pytest.mark.parametrize("path", ["modeling_x.py", "sub/Handler.PY", "x.so", "run.sh", "model.llamafile", "a.whl"])
def test_code_is_for_whoever_asks(path: str) -> None:
    """It is named either way."""
    assert paths("model.safetensors", path) == ["model.safetensors"]
    assert "python_code" in left_out("model.safetensors", path)[path]
    asked = selected("model.safetensors", path, python_code=True)
    assert {file.path for file in asked.files} == {"model.safetensors", path}
    assert asked.code == (path,)


def test_configs_name_code() -> None:
    """Their own, or another repository's."""
    assert code_named_in({"architectures": ["X"], "auto_map": {}}) == ()
    (named,) = code_named_in({"auto_map": {"AutoModel": "evil/repo--modeling.Evil"}})
    assert "evil/repo--modeling.Evil" in named
    assert len(code_named_in({"custom_pipelines": {"x": {"impl": "y" * 9999}}})[0]) < 300
    assert may_name_code("sub/tokenizer_config.json")
    assert not may_name_code("generation.json")
