"""Common subexpressions, dead code, branches and captures."""

import numpy as np
import pytest

from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.types import DType, TensorType
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.cleanup import Canonicalize
from regraft.passes.cleanup.subexpressions import merge_subexpressions
from regraft.passes.protocol import Context
from tests.passes.cleanup.rewriting import outputs, parse, run


def _ops(module: Module) -> list[str]:
    return [node.op.name for node in module.graph]


@pytest.mark.parametrize(
    ("body", "num"),
    [
        ("%a = exp(%x)\n%b = exp(%x)", 1),
        ("%a = add(%x, %z)\n%b = add(%z, %x)", 1),
        ("%a = sub(%x, %z)\n%b = sub(%z, %x)", 2),
        ("%a = reduce_sum(%x) {axes = [0]}\n%b = reduce_sum(%x) {axes = [0]}", 1),
        ("%a = reduce_sum(%x) {axes = [0]}\n%b = reduce_sum(%x) {axes = [1]}", 2),
        ("%a = leaky_relu(%x) {alpha = 0.0}\n%b = leaky_relu(%x) {alpha = -0.0}", 2),
        ("%a = cast(%x) {to = f16}\n%b = cast(%x) {to = f64}", 2),
    ],
)
def test_equal_calls_merge(body: str, num: int) -> None:
    module = parse(f"graph(%x : f32[B, 4], %z : f32[B, 4]) {{\n{body}\nreturn %a, %b\n}}")
    run(module)
    assert len(module.graph) == num


def test_random_calls_do_not_merge() -> None:
    call = "random_normal() {shape = [2], dtype = f32}"
    module = parse(f"graph() {{\n%a = {call}\n%b = {call}\nreturn %a, %b\n}}")
    assert not Canonicalize().run(module, Context()).changed


def test_attributes_compare_by_name_whatever_their_order() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 1, 9, 9)))
    w = Builder(graph).weight("w", ArrayWeight(np.ones((1, 1, 2, 2), np.float32)), Role.PARAM)
    two, one, pads = (2, 2), (1, 1), (0, 0, 0, 0)
    first = Builder(graph).op(OPS["conv"], x, w, strides=two, dilations=one, pads=pads)
    other = Builder(graph).op(OPS["conv"], x, w, dilations=two, strides=one, pads=pads)
    same = Builder(graph).op(OPS["conv"], x, w, pads=pads, dilations=one, strides=two)
    for value in (first, other, same):
        graph.add_output("y", value)
    merge_subexpressions(graph)
    assert graph.outputs[0] is graph.outputs[2]
    assert graph.outputs[0] is not graph.outputs[1]


@pytest.mark.parametrize(
    ("a", "b", "num"),
    [
        ("role=const = splat 1", "role=const = splat 1", 1),
        ("role=const = splat 1", "role=const = splat 2", 2),
        ("role=param = splat 1", "role=param = splat 1", 2),
        ("role=buffer = splat 1", "role=buffer = splat 1", 2),
        ("role=const = splat 1", "role=param = splat 1", 2),
    ],
)
def test_only_const_weights_merge_by_content(a: str, b: str, num: int) -> None:
    module = parse(
        f"weight @a : f32[300] {a}\nweight @b : f32[300] {b}\n"
        "graph(%x : f32[300]) {\n%a = weight @a\n%b = weight @b\n"
        "%u = exp(%a)\n%y = add(%x, %a)\n%z = sub(%x, %b)\nreturn %y, %z\n}"
    )
    run(module)
    assert len(module.weights) == num


def test_one_parameter_read_twice_is_one_node() -> None:
    module = parse(
        "weight @a : f32[300] role=param = splat 2\n"
        "graph(%x : f32[300]) {\n%a = weight @a\n%b = weight @a\n"
        "%y = add(%x, %a)\n%z = sub(%x, %b)\nreturn %y, %z\n}"
    )
    run(module)
    assert _ops(module).count("weight") == 1
    assert module.weights.role("a") is Role.PARAM


def test_the_same_steps_of_one_parameter_are_one_weight() -> None:
    module = parse(
        "weight @a : f32[300, 4] role=param = splat 2\n"
        "graph(%x : f32[2, 4], %z : f32[3, 4]) {\n%w = weight @a\n"
        "%s = transpose(%w) {perm = [1, 0]}\n%y = matmul(%x, %s)\n"
        "%v = weight @a\n%t = transpose(%v) {perm = [1, 0]}\n%u = matmul(%z, %t)\n"
        "return %y, %u\n}"
    )
    run(module)
    assert _ops(module).count("weight") == 1
    assert len(module.weights) == 1


def test_merged_symbols_are_renamed_everywhere() -> None:
    module = parse(
        "graph(%x : f32[B, 4], %z : f32[B, 4]) {\n%a = non_zero(%x)\n%b = non_zero(%x)\n"
        "%s = shape(%b)\n%k = literal i64[] 1\n%e = expand(%k, %s)\n%y = add(%a, %e)\nreturn %y\n}"
    )
    run(module)
    assert _ops(module).count("non_zero") == 1
    assert str(module.graph.outputs[0].type) == "i64[2, u0]"
    assert not module.assumptions


def test_dead_nodes_and_weights_go() -> None:
    module = parse(
        "weight @a : f32[300] role=param = splat 1\n"
        "graph(%x : f32[B]) {\n%a = weight @a\n%u = exp(%a)\n%v = exp(%x)\nreturn %x\n}"
    )
    run(module)
    assert len(module.graph) == 0
    assert len(module.weights) == 0


def test_node_stays_for_a_size_that_only_it_shows() -> None:
    module = parse(
        "graph(%x : f32[B, 4]) {\n%n = non_zero(%x)\n%s = shape(%n)\n%k = literal f32[] 2\n"
        "%y = expand(%k, %s)\nreturn %y\n}"
    )
    run(module)
    assert _ops(module) == ["non_zero", "literal", "expand"]


def _branches(cond: str) -> Module:
    module = parse(f"graph(%x : f32[3], %c : bool[]) {{\n{cond}\n%d = identity(%x)\nreturn %d\n}}")
    graph = module.graph
    x = graph.inputs[0]
    c = next((v for n in graph if (v := n.outputs[0]).name == "k"), graph.inputs[1])
    unused = Builder(graph).op(OPS["exp"], x)
    two = Builder(graph).constant([2.0, 2.0, 2.0], DType.F32)
    bodies = []
    for op in ("exp", "neg"):
        body = Graph(graph.scope)
        inner = [body.add_input(None, value.type) for value in (x, x, unused, two)]
        made = Builder(body).op(OPS[op], inner[0])
        other = Builder(body).op(OPS["add"], inner[1], inner[3])
        body.add_output("a", made)
        body.add_output("b", other)
        bodies.append(body)
    node = graph.create(
        OPS["if"], (c, x, x, unused, two), {"num_captures": 4}, num_outputs=2, bodies=tuple(bodies)
    )
    graph.add_output("y", node.outputs[1])
    return module


def test_branch_of_a_constant_condition_is_inlined() -> None:
    module = _branches("%k = literal bool[] true")
    run(module)
    assert outputs(module) == "x; add(x, [2.0,2.0,2.0])"


def test_undecided_branch_loses_unused_results_and_captures() -> None:
    module = _branches("%u = exp(%x)")
    run(module)
    node = next(node for node in module.graph if node.op.name == "if")
    assert len(node.outputs) == 1
    assert [value.name for value in node.inputs if value is not None] == ["c", "x"]
    assert [len(body.inputs) for body in node.bodies] == [1, 1]
    assert [[n.op.name for n in body] for body in node.bodies] == [["literal", "add"]] * 2


@pytest.mark.parametrize("middle", [0, 1])
def test_large_constants_merge_only_when_all_elements_are_equal(middle: int) -> None:
    graph = Graph()
    b = Builder(graph)
    arrays = [np.zeros(2000, np.float32) for _ in range(3)]
    for array in arrays[1:]:
        array[1000] = middle
    for idx, array in enumerate(arrays):
        graph.add_output(f"y{idx}", b.constant(array))
    merge_subexpressions(graph)
    first, second, third = graph.outputs
    assert second is third
    assert (first is second) == (middle == 0)
