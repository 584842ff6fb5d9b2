"""The demo's slow weights."""

from pathlib import Path

import gguf
import numpy as np

from deployments.local.deeper import OUT_OF_A_LAYER, write_deeper
from tests.tiny_gguf import write_tiny_gguf


def test_further_layers_are_there_and_add_nothing(tmp_path: Path) -> None:
    """As many again, each like the first ones but for the two matrices that would add to the stream: they are zero."""
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    write_deeper(source, tmp_path / "deeper.gguf")
    read, deeper = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "deeper.gguf")
    (layers, twice) = (file.fields["llama.block_count"].contents() for file in (read, deeper))
    assert twice == 2 * layers
    before, after = ({tensor.name: tensor.data for tensor in file.tensors} for file in (read, deeper))
    for name, data in before.items():
        assert np.array_equal(after.pop(name), data)
        if name.startswith("blk."):
            _, layer, part = name.split(".", 2)
            added = after.pop(f"blk.{int(layer) + layers}.{part}")
            assert not added.any() if part in OUT_OF_A_LAYER else np.array_equal(added, data)
    assert not after
