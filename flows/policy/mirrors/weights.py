"""What is a file of a model for: weights, and of which kind; the state of a training; code; or none of these?

Judged by names and by what lies beside them, before a byte has come; in which case, and where a file is stored, says
nothing. An engine judges by names too when it chooses what to load.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

SAFE = frozenset({".safetensors", ".gguf"})
"""Weights that are numbers and nothing else."""
UNSAFE = frozenset(
    {
        # Python's pickle, by PyTorch, scikit-learn and whoever else
        *(".bin", ".pt", ".pth", ".pt2", ".ptl", ".ckpt", ".ot", ".mar", ".pkl", ".pickle", ".pck", ".joblib"),
        *(".dill", ".cloudpickle", ".torch", ".nemo"),
        *(".npy", ".npz"),  # NumPy's, which may have pickles within
        *(".h5", ".hdf5", ".keras", ".pb"),  # Keras' layers and TensorFlow's graphs hold code
        *(".engine", ".plan", ".trt"),  # TensorRT runs what its engines say
    }
)
"""Loading such weights runs whatever code somebody has put into them."""
PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar", ".tgz", ".7z"})
"""What may be around any of these, so that it says nothing itself."""
ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".7z"})
"""Nobody sees what is within."""
CODE = frozenset(
    {
        *(".py", ".pyc", ".pyd", ".pyx", ".pyz", ".egg", ".whl"),
        *(".so", ".dll", ".dylib", ".exe", ".llamafile", ".sh", ".bat", ".ps1", ".jar"),
    }
)

OF_A_TRAINING = re.compile(
    r"(training_args|optimizer|optim|scheduler|scaler|rng_state|random_states)([._-].*)?\.[a-z0-9]+"
    r"|(bf16_)?zero_pp_rank_.*_optim_states\.pt|(zero_pp_rank_.*|mp_rank_.*)_model_states\.pt"
)
"""The state of Transformers', Accelerate's and DeepSpeed's trainers, which no engine loads."""
SHARD = re.compile(r"[.-]\d{5}-of-\d{5}")
OF_A_LIBRARY = re.compile(r"(pytorch|tf|flax|rust)_(?=model)")
CONSOLIDATED = re.compile(r"consolidated\.\d\d")
"""Meta's own form of the weights, which stands in a folder `original`."""


CONFIGS = frozenset(
    f"{kind}config.json"
    for kind in ("", "tokenizer_", "preprocessor_", "video_preprocessor_", "processor_", "generation_")
)
"""Where Transformers looks for code to load."""
NAMES_OF_CODE = ("auto_map", "custom_pipelines")


def may_name_code(path: str) -> bool:
    return _name(path) in CONFIGS


def code_named_in(config: Mapping[str, object]) -> tuple[str, ...]:
    """What a config says is to be run beside the engine's own code, which may even lie in another repository."""
    return tuple(f"{name}: {config[name]!r:.200}" for name in NAMES_OF_CODE if config.get(name))


def is_code(path: str) -> bool:
    """Would it run, if somebody ran it?"""
    return bool(_endings(path) & CODE)


def what_stands_in(paths: Iterable[str]) -> dict[str, str | None]:
    """Each file that runs code when it is loaded, and why no engine needs it; None where one may.

    Other weights than those that lie beside them in another form are needed: left out silently, they would leave a
    model that answers and is not the one that was trained.
    """
    paths = tuple(paths)
    beside = defaultdict[str, set[str]](set)  # once for all: of a hundred thousand files each may be of another engine
    for path in paths:
        beside[_folder(path)].add(_name(path))
    safe = {(_folder(path), _stem(path)) for path in paths if _endings(path) & SAFE}
    folders_of_gguf = {_folder(path) for path in paths if ".gguf" in _endings(path)}
    has_safe_weights_on_top = any(folder == "." for folder, _ in safe)

    def reason(path: str) -> str | None:
        folder, stem = _folder(path), _stem(path)
        if OF_A_TRAINING.fullmatch(_name(path)):
            return "the state of a training, which no engine loads"
        if (folder, stem) in safe or (stem == "model" and folder in folders_of_gguf):
            return "a pickle or alike, and the same weights lie beside it in a safe form"
        if CONSOLIDATED.fullmatch(stem) and folder in (".", "original") and has_safe_weights_on_top:
            return "a pickle, and the same weights are there in a safe form"
        return None

    return {path: reason(path) for path in paths if _is_unsafe(path, beside[_folder(path)])}


def _is_unsafe(path: str, beside: Collection[str]) -> bool:
    endings = _endings(path)
    if endings & ARCHIVES:
        return True
    return bool(endings & UNSAFE) and not _is_of_another_engine(path, beside)


def _is_of_another_engine(path: str, beside: Collection[str]) -> bool:
    """OpenVINO's numbers lie beside the graph that says what they are, CTranslate2's beside a vocabulary."""
    name = _name(path)
    if name.startswith("openvino_") and name.endswith(".bin"):
        return name.removesuffix(".bin") + ".xml" in beside
    return name == "model.bin" and any(re.fullmatch(r"([a-z]+_)?vocabulary\.(txt|json)", other) for other in beside)


def _endings(path: str) -> frozenset[str]:
    """The last ending, and what it is packed in: `.pkl` and `.gz` of `a.pkl.gz`."""
    found = list[str]()
    for ending in reversed(PurePosixPath(f"_{_name(path)}").suffixes):  # `.bin` alone ends so too
        found.append(ending)
        if ending not in PACKED:
            break
    return frozenset(found)


def _folder(path: str) -> str:
    return PurePosixPath(path).parent.as_posix()


def _name(path: str) -> str:
    return PurePosixPath(path).name.lower()


def _stem(path: str) -> str:
    """What the weights are called, in whatever form and in however many shards: `model` of `pytorch_model.bin`."""
    name = _name(path)
    while (ending := PurePosixPath(name).suffix) and ending in SAFE | UNSAFE | PACKED:
        name = name.removesuffix(ending)
    return OF_A_LIBRARY.sub("", SHARD.sub("", name))
