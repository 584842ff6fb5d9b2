"""The packaged model with twice the layers: it answers the same, word for word, and takes about twice the work."""

from pathlib import Path

import gguf
import numpy as np

OUT_OF_A_LAYER = ("attn_output.weight", "ffn_down.weight")
"""What a layer adds to the stream goes through these two; where they are zero, it adds nothing, and is worked out."""


def write_deeper(source: Path, target: Path) -> None:
    """Copy a GGUF file, and after its layers as many again that are computed as they are and add nothing."""
    read = gguf.GGUFReader(source)
    architecture = read.fields["general.architecture"].contents()
    block_count = f"{architecture}.block_count"
    layers = read.fields[block_count].contents()
    write = gguf.GGUFWriter(target, architecture)
    for field in read.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # the writer's own
        kind, *of = field.types
        value = 2 * layers if field.name == block_count else field.contents()
        write.add_key_value(field.name, value, kind, sub_type=of[-1] if of else None)
    for tensor in read.tensors:
        write.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if tensor.name.startswith("blk."):
            _, layer, part = tensor.name.split(".", 2)
            # Of any quantisation, a block of zero bytes is a block of zeros.
            data = np.zeros_like(tensor.data) if part in OUT_OF_A_LAYER else tensor.data
            write.add_tensor(f"blk.{int(layer) + layers}.{part}", data, raw_dtype=tensor.tensor_type)
    write.write_header_to_file()
    write.write_kv_data_to_file()
    write.write_tensors_to_file()
    write.close()
