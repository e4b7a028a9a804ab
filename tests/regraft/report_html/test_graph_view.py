"""The view of a graph: boxes, layers, places, and what changed."""

from __future__ import annotations

import itertools

from regraft.ir.module import Module
from regraft.ir.text import parse_module
from regraft.passes.cleanup import Canonicalize
from regraft.passes.protocol import Context
from regraft.report_html.graph_view import MAX_NODES, as_data, statuses, view_of

TEXT = """\
symbol B
weight @w : f32[4, 4] role=param = random(1)

graph(%x : f32[B, 4], %z : f32[B, 4]) {
  %w = weight @w
  %a = matmul(%x, %w)
  %b = neg(%a)
  %c = neg(%b)
  %d = add(%c, %z)
  %e = tanh(%a)
  %f = add(%d, %e)
  return %f
}
"""


def module() -> Module:
    return parse_module(TEXT)


def test_constants_are_a_detail_of_their_user() -> None:
    view = view_of(module())
    assert [box.op for box in view.boxes] == [
        "input", "input", "matmul", "neg", "neg", "add", "tanh", "add", "output",
    ]  # fmt: skip
    assert view.boxes[2].detail == ("b = @w f32[4, 4]",)
    assert view.num_nodes == 6


def test_edges_go_down_and_boxes_of_a_layer_do_not_overlap() -> None:
    view = view_of(module())
    assert all(view.layers[a] < view.layers[b] for a, b in view.edges)
    rows: dict[int, list[float]] = {}
    for layer, place in zip(view.layers, view.places, strict=True):
        rows.setdefault(layer, []).append(place)
    for row in rows.values():
        row.sort()
        assert all(b - a >= 0.99 for a, b in itertools.pairwise(row))


def test_input_stands_above_its_first_use() -> None:
    view = view_of(module())
    by_name = {box.name: i for i, box in enumerate(view.boxes)}
    assert view.layers[by_name["z"]] == view.layers[by_name["d"]] - 1


def test_chain_runs_straight_down() -> None:
    lines = "\n".join(f"%v{i + 1} = tanh(%v{i})" for i in range(50))
    view = view_of(parse_module(f"graph(%v0 : f32[4]) {{\n{lines}\nreturn %v50\n}}\n"))
    assert set(view.places) == {0.0}
    assert list(view.layers) == list(range(52))


def test_statuses_say_what_a_pass_did() -> None:
    before = view_of(module())
    changed = module()
    Canonicalize().run(changed, Context())
    after = view_of(changed)
    first, second = statuses(before, after)
    old = dict(zip([box.name for box in before.boxes], first, strict=True))
    new = dict(zip([box.name for box in after.boxes], second, strict=True))
    assert old["b"] == "gone"
    assert new["d"] == "changed"  # it reads another operand
    assert old["e"] == new["e"] == "same"
    assert "new" not in second


def test_bodies_are_drawn_above_their_node() -> None:
    text = (
        "graph(%x : f32[4], %c : bool[]) {\n"
        "%y = if(%c, %x) {num_captures = 1} body(%a : f32[4]) {\n%t = tanh(%a)\nreturn %t\n"
        "} body(%b : f32[4]) {\n%v = neg(%b)\nreturn %v\n}\nreturn %y\n}\n"
    )
    view = view_of(parse_module(text))
    by_op = {box.op: i for i, box in enumerate(view.boxes)}
    assert view.num_nodes == 3
    assert {(0, by_op["tanh"]), (0, by_op["neg"])} <= set(view.edges)
    assert {(by_op["tanh"], by_op["if"]), (by_op["neg"], by_op["if"])} <= set(view.edges)


def test_large_graph_is_counted_and_not_drawn() -> None:
    lines = "\n".join(f"%v{i + 1} = tanh(%v{i})" for i in range(MAX_NODES + 1))
    last = f"%v{MAX_NODES + 1}"
    view = view_of(parse_module(f"graph(%v0 : f32[4]) {{\n{lines}\nreturn {last}\n}}\n"))
    assert not view.is_drawn
    assert as_data(view, [])["nodes"] == MAX_NODES + 1
