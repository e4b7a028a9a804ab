"""Overloads without an importer: PyTorch decomposes them, and only them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402

from regraft.frontends.torch.call import CallImport, ImportTable, UnsupportedCallError  # noqa: E402
from regraft.frontends.torch.ops import FAMILIES  # noqa: E402
from regraft.frontends.torch.program import import_program  # noqa: E402
from regraft.ir.errors import UnsupportedError  # noqa: E402
from regraft.ir.evaluate import evaluate  # noqa: E402
from regraft.ir.ops.norm import layer_norm  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Any) -> Any:
        return nn.functional.hardswish(self.norm(self.first(x))) * x.shape[0]


def imported(*dropped: str, refused: str = "") -> tuple[Any, Any, Any]:
    """Returns the net, an input, and the module imported without some importers."""
    families = []
    for family in FAMILIES:
        rows = [row for row in family if not set(row.targets) & {*dropped, refused}]
        families.append(tuple(rows))
    table = ImportTable(*families)
    if refused:
        table._rows[refused] = _refuse
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(3, 4)
    axes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(net, (x,), dynamic_shapes=axes, strict=False)
    return net, x, import_program(program, table, "net", {}).module


def _refuse(c: CallImport) -> Any:
    raise UnsupportedCallError("a variant that it does not know")


@pytest.mark.parametrize("is_refused", [False, True], ids=["missing", "refused"])
@pytest.mark.parametrize("target", ["aten.linear.default", "aten.hardswish.default"])
def test_a_call_without_an_importer_is_decomposed(target: str, is_refused: bool) -> None:
    net, x, module = imported(*(() if is_refused else (target,)), refused=target * is_refused)
    assert any(node.op is layer_norm for node in module.graph)  # the others stay whole
    for rows in (x, x[:1], x.repeat(3, 1)):
        found = evaluate(module, {"x": rows.numpy()})["output"]
        expected = net(rows).detach().numpy()
        # 4 products and a norm of 6 elements: fewer than 64 roundings of half an eps
        bound = 32 * np.finfo(np.float32).eps * np.abs(expected).max()
        assert np.abs(found - expected).max() <= bound


def test_decomposed_calls_keep_module_and_line() -> None:
    *_, module = imported("aten.linear.default")
    first = module.graph.first
    origins = [node.loc for node in module.graph if "torch:first" in node.loc]
    assert first is not None
    assert origins


def test_what_has_no_decomposition_is_listed() -> None:
    with pytest.raises(UnsupportedError, match=r"`aten.mul.Tensor` x 1: no importer"):
        imported("aten.mul.Tensor")
