"""Emitters to PyTorch that plugins bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import regraft
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.graph import Node
from regraft.ir.ops import OPS
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec, Trait
from regraft.ir.text import parse_module
from regraft.ir.types import Type
from regraft.plugins import combine
from tests.backends.torch.models import torch

from regraft.backends.torch.emitter import Emit, EmitContext  # isort: skip  # needs torch
from regraft.backends.torch.executor import load_file  # isort: skip
from regraft.ir.ops.activation import relu  # isort: skip


def _same_type(node: Node) -> Type:
    (x,) = node.inputs
    assert x is not None
    return x.type


SHIFT = OpSpec(
    name="acme.shift",
    source="x + by",
    operands=(Operand("x"),),
    results=("y",),
    attrs=(Attr("by", AttrKind.FLOAT),),
    traits=Trait.PURE | Trait.ELEMENTWISE,
    infer=_same_type,
    eval=lambda c: c.inputs[0] + np.float32(c.attrs["by"]),
)

TEXT = """
module "own"
symbol B
graph(%x : f32[B, 4]) {
  %h = acme.shift(%x) {by = 0.5}
  %y = relu(%h)
  return %y
}
"""


def _emit_shift(e: EmitContext) -> str:
    return f"{e.input(0)} + {e.attr('by')!r}"


def _plugin(*emitters: Emit, name: str = "acme") -> regraft.Plugin:
    operators = (SHIFT,) if name == "acme" else ()
    return regraft.Plugin(api_version=1, name=name, operators=operators, torch_emitters=emitters)


def test_operators_of_plugins_are_written_by_their_emitters(tmp_path: Path) -> None:
    module = parse_module(TEXT, ops={**OPS, SHIFT.name: SHIFT})
    plugin = _plugin(Emit(SHIFT, _emit_shift))
    result = regraft.convert(module, tmp_path / "out", target="torch", plugins=[plugin])
    assert result.check.ok
    net = load_file(tmp_path / "out" / "model.py")
    x = torch.randn(3, 4)
    torch.testing.assert_close(net(x), torch.relu(x + 0.5))


def test_operators_without_an_emitter_are_named_before_the_work(tmp_path: Path) -> None:
    module = parse_module(TEXT, ops={**OPS, SHIFT.name: SHIFT})
    with pytest.raises(UnsupportedError, match=r"acme\.shift"):
        regraft.convert(module, tmp_path / "out", target="torch", plugins=[_plugin()])


def test_an_emitter_that_exists_is_not_replaced(tmp_path: Path) -> None:
    plugin = _plugin(Emit(relu, _emit_shift))
    module = parse_module(TEXT.replace("%h = acme.shift(%x) {by = 0.5}", "%h = identity(%x)"))
    with pytest.raises(UsageError, match="`relu` has an emitter to PyTorch already"):
        regraft.convert(module, tmp_path / "out", target="torch", plugins=[plugin])


def test_two_plugins_with_one_emitter_are_refused() -> None:
    with pytest.raises(UsageError, match=r"PyTorch emitter of `acme\.shift` exists already"):
        combine(
            [_plugin(Emit(SHIFT, _emit_shift)), _plugin(Emit(SHIFT, _emit_shift), name="other")]
        )
