"""Generated models whose weights lie in an external file, written one tensor at a time.

The graph is the stack of `benchmarks.blocks` at a large width. Weights are random and all
different, so that no tool gains by deduplicating them; at most one tensor (64 MiB) is in memory.

`python -m benchmarks.big OUT/model.onnx --bytes 6e9` writes a model of 6 GB.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks import blocks

GIB = 1 << 30
HIDDEN = 2048
FFN = 8192
BYTES_PER_BLOCK = 4 * (HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
ALIGNMENT = 4096
"""Offsets are multiples of a page, so that readers can map each tensor on its own."""


@dataclass(slots=True)
class _ExternalStore:
    """Appends each weight to an open file and answers with a reference to its place."""

    file: IO[bytes]
    location: str

    def __call__(self, name: str, array: NDArray[np.generic]) -> TensorProto:
        offset = -(-self.file.tell() // ALIGNMENT) * ALIGNMENT
        self.file.seek(offset)
        np.ascontiguousarray(array).tofile(self.file)
        proto = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self.location),
            ("offset", str(offset)),
            ("length", str(array.nbytes)),
        ):
            proto.external_data.add(key=key, value=value)
        return proto


def write(path: Path, min_bytes: int, seed: int = 0) -> int:
    """Writes a model with at least `min_bytes` of weights at `path`, and `path.data` beside it.

    Nothing is written when the file is already there for the same size and seed.

    Returns:
        Bytes of weights.
    """
    count = -(-min_bytes // BYTES_PER_BLOCK)
    data, note = path.with_name(path.name + ".data"), path.with_name(path.name + ".made")
    made = json.dumps({"blocks": count, "hidden": HIDDEN, "ffn": FFN, "seed": seed})
    if not (note.exists() and path.exists() and data.exists() and note.read_text() == made):
        path.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        with data.open("wb") as file:
            store = _ExternalStore(file, data.name)
            model = blocks.stack(count, HIDDEN, FFN, seed, store)
        onnx.save_model(model, path)
        note.write_text(made)
    return data.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.big", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bytes", type=float, default=2.1 * GIB)
    options = parser.parse_args()
    print(f"{write(options.out, int(options.bytes)):,} bytes")


if __name__ == "__main__":
    main()
