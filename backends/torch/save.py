"""Writes a module as `model.py` and `model.safetensors`, which need nothing but torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from regraft.backends.torch.emitter import Emit
from regraft.backends.torch.generate import generate
from regraft.backends.torch.library.reading import DTYPES
from regraft.backends.torch.ops import FAMILIES
from regraft.backends.torch.tensors import tensor_from, torch_dtype
from regraft.backends.torch.weight_plan import Slot
from regraft.backends.torch.weight_source import is_inline
from regraft.ir.module import Module

WEIGHTS_SUFFIX = ".safetensors"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64


def save_torch(
    module: Module, path: Path, *, families: Sequence[tuple[Emit, ...]] = FAMILIES
) -> list[Path]:
    """Writes the source file and the weights beside it, tensor by tensor.

    `python -c "import model; net = model.load()"` in that folder gives the module back. The caller
    gives a path in a temporary folder and renames the files when all is well.

    Args:
        module: The module.
        path: The source file, `….py`.
        families: Emitters by operator.

    Returns:
        The files written.

    Raises:
        OSError: When the disk is full or the folder cannot be written.
        UnsupportedError: When an operator has no PyTorch form, naming all that have none.
    """
    generated = generate(module, families=families, is_file=True)
    weights = path.with_suffix(WEIGHTS_SUFFIX)
    write_tensors(weights, [slot for slot in generated.plan.slots.values() if not is_inline(slot)])
    path.write_text(generated.source, encoding="utf-8")
    return [path, weights]


def write_tensors(path: Path, slots: Sequence[Slot]) -> None:
    """Writes a safetensors file; one tensor at a time is in memory."""
    # wide elements first: every tensor is then aligned to its element
    order = sorted(slots, key=lambda slot: -torch_dtype(slot.dtype).itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for slot in order:
        dtype = torch_dtype(slot.dtype)
        size = dtype.itemsize * torch.Size(slot.shape).numel()
        header[slot.path] = {
            "dtype": _NAMES[dtype],
            "shape": list(slot.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for slot in order:
            tensor = tensor_from(slot.weight.numpy())
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
