"""Runs single ATen calls through their importer and compares them with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from regraft.frontends.torch.call import CallImport, ImportTable
from regraft.frontends.torch.ops import FAMILIES
from regraft.frontends.torch.ops.complex_numbers import is_complex
from regraft.frontends.torch.schemas import Schemas
from regraft.frontends.torch.tensors import DTYPES, array_from_tensor, dtype_from_torch
from regraft.ir.builder import Builder
from regraft.ir.evaluate import evaluate
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.types import TensorType

TABLE = ImportTable(*FAMILIES)
_SCHEMAS = Schemas()

# Rounding of one operator, in units of the last place of its element type. PyTorch and the
# evaluator add in different orders, and transcendental functions differ in the last places.
_ULPS = 32


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an overload.

    Args:
        target: The overload.
        args: Positional arguments.
        kwargs: Keyword arguments.
        depth: Number of summed terms, whose roundings add up as its root.
        types_only: The values are random or unspecified: only their types are compared.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 1
    types_only: bool = False

    def __str__(self) -> str:
        return f"{self.target}({', '.join(map(_brief, self.args))})"


def call(target: str, *args: Any, depth: int = 1, types_only: bool = False, **kwargs: Any) -> Call:
    """Returns a call of `aten.<target>`."""
    name = target if target.startswith("transformers.") else f"aten.{target}"
    return Call(name, args, kwargs, depth, types_only)


def _brief(arg: Any) -> str:
    if isinstance(arg, torch.Tensor):
        return f"{str(arg.dtype).removeprefix('torch.')}{list(arg.shape)}".replace(" ", "")
    if isinstance(arg, list | tuple):
        return f"[{','.join(map(_brief, arg))}]"
    return str(arg)


def overload(target: str) -> Any:
    """Returns PyTorch's overload of a name."""
    namespace, name, kind = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), kind)


def exists(target: str) -> bool:
    """Returns whether PyTorch has the overload; some rows serve in-place calls alone."""
    namespace, name, kind = target.split(".")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return packet is not None and kind in packet.overloads()


def argument_names(target: str) -> tuple[str, ...]:
    """Returns the argument names of an overload."""
    return _SCHEMAS.of(overload(target)).arg_names


def check_call(item: Call) -> None:
    """Imports a call, evaluates it and compares types and values with PyTorch's."""
    function = overload(item.target)
    with torch.no_grad():
        expected = function(*item.args, **item.kwargs)
    expected = expected if isinstance(expected, list | tuple) else (expected,)
    graph = Graph()
    feeds: dict[str, Any] = {}

    def convert(arg: Any) -> Any:
        if isinstance(arg, torch.Tensor) and arg.is_complex():
            return Builder(graph).constant(arg.resolve_conj().numpy())  # no runtime takes them
        if isinstance(arg, torch.Tensor):
            name = f"x{len(feeds)}"
            feeds[name] = array_from_tensor(arg)
            return graph.add_input(name, TensorType(dtype_from_torch(arg.dtype), tuple(arg.shape)))
        if isinstance(arg, list | tuple):
            return tuple(convert(each) for each in arg)
        return DTYPES.get(arg, arg) if isinstance(arg, torch.dtype) else arg

    bound = _SCHEMAS.of(function).bind(item.args, item.kwargs)
    args = {name: convert(arg) for name, arg in bound.items()}
    types = tuple(TensorType(dtype_from_torch(each.dtype), tuple(each.shape)) for each in expected)
    importer = TABLE.find(item.target)
    assert importer is not None, f"no importer of {item.target}"
    made = importer(CallImport(item.target, args, types, Builder(graph)))
    values = [made] if isinstance(made, Value) else list(made)
    assert len(values) == len(expected)
    present = [(i, value) for i, value in enumerate(values) if value is not None]
    for i, value in present:
        graph.add_output(f"y{i}", value)
    results = evaluate(Module(graph), feeds)
    for i, value in present:
        _compare(item, value, results[f"y{i}"], expected[i])


def _compare(item: Call, value: Value, got: Any, expected: torch.Tensor) -> None:
    if expected.is_complex():
        assert is_complex(value)
        expected = torch.view_as_real(expected.resolve_conj())
    wanted = array_from_tensor(expected)
    assert value.dtype is dtype_from_torch(expected.dtype), f"{value.dtype}, not {expected.dtype}"
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape, f"shape {got.shape}, PyTorch gives {wanted.shape}"
    assert value.shape is not None
    assert len(value.shape) == len(wanted.shape)
    for dim, size in zip(value.shape, wanted.shape, strict=True):
        assert dim == size or not isinstance(dim, int), f"type {value.type}"
    if item.types_only:
        return
    if not expected.dtype.is_floating_point:
        np.testing.assert_array_equal(got, wanted)
        return
    info = torch.finfo(expected.dtype)
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.abs(b[np.isfinite(b)])
    scale = max(float(finite.max()), 1.0) if finite.size else 1.0
    bound = _ULPS * info.eps * scale * float(np.sqrt(item.depth))
    np.testing.assert_allclose(a, b, rtol=0, atol=bound)
