"""PyTorch as the oracle of a capture: evaluator and ONNX Runtime against the original module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from regraft.backends.onnx import save_onnx
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.torch.capture import Capture, capture
from regraft.ir.dims import bind
from regraft.ir.evaluate import evaluate
from regraft.ir.types import TensorType
from regraft.ir.verify import verify

TERMS = 256
"""More terms than any sum of the small modules has; each rounds by half an eps."""


def check_capture(
    module: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Any = None,
    sizes: Sequence[Mapping[str, int]] = ({},),
    folder: Path,
) -> Capture:
    """Captures a module and compares it with the original at several sizes.

    Args:
        module: The module.
        args: Example positional arguments.
        kwargs: Example keyword arguments.
        dynamic: `dynamic_shapes`.
        sizes: Sizes of the symbols, one mapping per comparison; those of the example where absent.
        folder: Where the ONNX file goes.
    """
    captured = capture(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    assert not verify(captured.module)
    path = folder / "model.onnx"
    save_onnx(captured.module, path)
    runtime, original = OrtRunner(path), captured.runner(True)
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs or {})))
    example = {name: leaves[i].numpy() for i, name in captured.imported.inputs.items()}
    for binding in sizes:
        inputs = {
            name: resized(array, captured.module.input_types[name], binding)
            for name, array in example.items()
        }
        expected = original(inputs)
        assert expected, "a module without outputs cannot be compared"
        for found in (evaluate(captured.module, inputs), runtime(inputs)):
            for name, array in expected.items():
                compare(found[name], array, name)
    return captured


def resized(array: Any, type_: Any, binding: Mapping[str, int]) -> Any:
    """Repeats or cuts an example so that it has the sizes of a binding."""
    assert isinstance(type_, TensorType)
    assert type_.shape is not None
    for axis, dim in enumerate(type_.shape):
        size = bind(dim, binding)
        if isinstance(size, int) and size != array.shape[axis]:
            array = np.take(array, np.arange(size) % array.shape[axis], axis)
    return array


def compare(found: Any, expected: Any, name: str) -> None:
    """Compares one output: types and shapes are equal, floats up to the rounding of sums."""
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    if expected.dtype.kind not in "fc" and expected.dtype.kind != "V":
        assert np.array_equal(found, expected), name
        return
    a, b = found.astype(np.float64), expected.astype(np.float64)
    assert not np.isnan(b).any(), f"{name}: the reference is NaN"
    eps = float(torch.finfo(getattr(torch, expected.dtype.name)).eps)
    bound = TERMS / 2 * eps * max(1.0, float(np.abs(b).max(initial=0)))
    assert np.abs(a - b).max(initial=0) <= bound, name
