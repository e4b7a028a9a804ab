"""The residual stream and repeated layers are found by structure."""

from __future__ import annotations

import pytest

from regraft.ir.module import Module
from regraft.passes.analysis.blocks import recognize
from regraft.passes.analysis.layers import repeated_layers
from regraft.passes.analysis.residual import streams
from tests.passes.analysis.spelled import spelled


def stack(count: int, norm: str, extra: str = "") -> Module:
    """Returns layers of two residual sums each; the norm stands before, after, or nowhere."""
    weights, lines, x = {"g": "f32[16]", "bb": "f32[16]"}, [], "%x"
    for i in range(count):
        for part in ("a", "b"):
            name = f"{part}{i}"
            weights |= {f"u{name}": "f32[16, 32]", f"d{name}": "f32[32, 16]"}
            skip = source = x
            if norm == "before":
                lines.append(f"%n{name} = layer_norm({skip}, %g, %bb)")
                source = f"%n{name}"
            act = "relu" if part == "a" else "tanh"
            lines += [
                f"%h{name} = matmul({source}, %u{name})",
                f"%k{name} = {act}(%h{name})",
                f"%o{name} = matmul(%k{name}, %d{name})",
                f"%s{name} = add({skip}, %o{name})",
            ]
            x = f"%s{name}"
            if norm == "after":
                lines.append(f"%l{name} = layer_norm({x}, %g, %bb)")
                x = f"%l{name}"
    lines.append(f"%y = mul({x}, 3.0)" + extra)
    return spelled("\n".join(lines), weights=weights)


@pytest.mark.parametrize("norm", ["before", "after", "none"])
def test_layers_repeat_whatever_the_place_of_the_norm(norm: str) -> None:
    module = stack(5, norm)
    (group,) = repeated_layers(module.graph)
    assert len(group.layers) == 5
    assert [len(layer.sums) for layer in group.layers] == [2] * 5
    assert len({len(layer.nodes) for layer in group.layers}) == 1
    for before, after in zip(group.layers, group.layers[1:], strict=False):
        assert before.output is after.input
    assert group.layers[0].input is module.graph.inputs[0]
    names = [[value.name for value in layer.constants] for layer in group.layers]
    assert [name for name in names[3] if name not in ("g", "bb")] == ["ua3", "da3", "ub3", "db3"]


def test_nodes_of_layers_correspond() -> None:
    (group,) = repeated_layers(stack(3, "before").graph)
    ops = [[node.op for node in layer.nodes] for layer in group.layers]
    assert ops[0] == ops[1] == ops[2]


def test_one_layer_is_no_group() -> None:
    assert repeated_layers(stack(1, "before").graph) == []


def test_layers_of_other_widths_are_other_groups() -> None:
    body, weights = [], {}
    x = "%x"
    for i, width in enumerate([32, 32, 48, 48, 48]):
        weights |= {f"u{i}": f"f32[16, {width}]", f"d{i}": f"f32[{width}, 16]"}
        body += [f"%h{i} = matmul({x}, %u{i})", f"%k{i} = relu(%h{i})",
                 f"%o{i} = matmul(%k{i}, %d{i})", f"%s{i} = add({x}, %o{i})"]  # fmt: skip
        x = f"%s{i}"
    module = spelled("\n".join([*body, f"%y = mul({x}, 3.0)"]), weights=weights)
    assert [len(group.layers) for group in repeated_layers(module.graph)] == [2, 3]


def test_sum_of_unrelated_values_is_no_residual() -> None:
    body = "%a = mul(%x, 2.0)\n%b = tanh(%x)\n%y = add(%a, %b)"
    assert streams(spelled(body).graph) == []


def test_sums_inside_branches_are_not_on_the_stream() -> None:
    (chain,) = streams(stack(2, "before").graph)
    assert [each.node.outputs[0].name for each in chain] == ["sa0", "sb0", "sa1", "sb1"]


def test_recognize_describes_layers() -> None:
    (described,) = recognize(stack(4, "before")).describe()["layers"]
    assert described["count"] == 4
    assert described["sums"] == 2
