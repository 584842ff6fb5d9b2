"""The demo's slow weights."""

from pathlib import Path

import gguf
import pytest

from blocks.openai_engine import OpenAIEngine
from blocks.ports import Prompt, Replica
from deployments.local.deeper import write_deeper
from tests.tiny_gguf import LAYERS, tiny_replica, write_tiny_gguf


@pytest.mark.server
def test_the_deeper_model_has_twice_the_layers_and_says_the_same(tmp_path: Path) -> None:
    """llama.cpp takes it, and answers word for word as with the weights that it was made of."""
    plain = write_tiny_gguf(tmp_path / "plain.gguf")
    deeper = tmp_path / "deeper.gguf"
    write_deeper(plain, deeper)
    assert gguf.GGUFReader(deeper).fields["llama.block_count"].contents() == 2 * LAYERS
    said = []
    for weights in (plain, deeper):
        with tiny_replica(tmp_path, weights=weights) as (address, _):
            replica = Replica(weights.stem, "chat", "1", "here", address)
            said.append(OpenAIEngine().ask(replica, Prompt("hello", 32, "text")).text)
    assert said[0]
    assert said[0] == said[1]
