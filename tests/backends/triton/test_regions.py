"""The partition: convex regions that cost less than their nodes one by one."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.backends.triton.product_regions import Products
from regraft.backends.triton.region_nodes import common_space
from regraft.backends.triton.regions import Partition
from regraft.ir.dims import Dim
from regraft.ir.graph import Graph
from regraft.ir.ops.arithmetic import add, mul
from regraft.ir.ops.functions import exp, sin
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.reduce import reduce_sum
from regraft.ir.types import DType, TensorType

MATRIX = TensorType(DType.F32, (64, 64))


def regions(graph, left=()):
    return Partition(list(graph), left).regions()


def names(region):
    return [node.op.name for node in region.nodes]


def test_a_chain_is_one_region():
    graph = Graph()
    x = graph.add_input("x", MATRIX)
    y = graph.create(exp, [graph.create(add, [x, x]).output]).output
    total = graph.create(reduce_sum, [y], {"axes": (1,)}).output
    graph.add_output("y", graph.create(mul, [y, total]).output)
    (region,) = regions(graph)
    assert names(region) == ["add", "exp", "reduce_sum", "mul"]
    assert region.inputs == (x,)
    assert region.outputs == (graph.outputs[0],)
    # two matrices are written and read by one and by two, and the sums of rows; x stays
    assert region.saved_bytes == (2 + 3) * 64 * 64 * 4 + 2 * 64 * 4
    assert region.seconds < region.separate_seconds


def test_no_region_reads_what_depends_on_it():
    graph = Graph()
    x = graph.add_input("x", MATRIX)
    y = graph.create(exp, [x]).output
    z = graph.create(matmul, [y, y]).output
    graph.add_output("z", graph.create(add, [y, z]).output)
    assert regions(graph) == []


def test_a_region_is_computed_before_what_reads_it_first():
    graph = Graph()
    x = graph.add_input("x", MATRIX)
    y = graph.create(exp, [x]).output
    z = graph.create(matmul, [y, y]).output
    w = graph.create(sin, [y]).output
    graph.add_output("z", z)
    graph.add_output("w", graph.create(mul, [w, w]).output)
    (region,) = regions(graph)
    assert names(region) == ["exp", "sin", "mul"]
    assert region.anchor is y.producer
    assert region.outputs == (y, graph.outputs[1])


def test_nodes_that_are_computed_otherwise_are_left():
    graph = Graph()
    x = graph.add_input("x", MATRIX)
    first = graph.create(exp, [x])
    graph.add_output("y", graph.create(sin, [first.output]).output)
    assert regions(graph, left=[first]) == []


def test_a_cheap_value_is_computed_again_rather_than_kept():
    graph = Graph()
    row = graph.add_input("row", TensorType(DType.F32, (64, 1)))
    column = graph.add_input("column", TensorType(DType.F32, (1, 64)))
    outer = graph.create(mul, [row, column])
    once = graph.create(exp, [graph.create(sin, [outer.output]).output]).output
    graph.add_output("y", graph.create(matmul, [once, once]).output)
    again = graph.create(add, [outer.output, graph.outputs[0]]).output
    graph.add_output("z", graph.create(sin, [again]).output)
    found = regions(graph)
    assert [names(region) for region in found] == [["mul", "sin", "exp"], ["mul", "add", "sin"]]
    assert all(region.again == (outer,) for region in found)
    assert all(outer.output not in region.outputs for region in found)


@pytest.mark.parametrize(
    ("shapes", "space"),
    [
        ([(3, 1), (1, 4)], (3, 4)),
        ([(4,), (2, 1, 4)], (2, 1, 4)),
        ([(3,), (4,)], None),
        ([(Dim.of("B"), 4), (1, 4)], (Dim.of("B"), 4)),
        ([(Dim.of("B"), 4), (Dim.of("S"), 4)], None),
    ],
)
def test_common_space(shapes, space):
    assert common_space(shapes) == space


CHOICES = st.lists(
    st.tuples(st.sampled_from("aesmr"), st.integers(0, 9), st.integers(0, 9)),
    min_size=3, max_size=25,
)  # fmt: skip


def built(choices, num_outputs):
    graph = Graph()
    values = [graph.add_input("x", MATRIX)]
    for kind, one, other in choices:
        a, b = values[-1 - one % len(values)], values[-1 - other % len(values)]
        match kind:
            case "a":
                made = graph.create(add, [a, b])
            case "m":
                made = graph.create(matmul, [a, b])
            case "r":
                total = graph.create(reduce_sum, [a], {"axes": (1,)})
                made = graph.create(add, [total.output, b])
            case _:
                made = graph.create(exp if kind == "e" else sin, [a])
        values.append(made.output)
    for idx, value in enumerate(values[-1 - num_outputs :]):
        graph.add_output(f"y{idx}", value)
    return graph


@settings(max_examples=60, deadline=None)
@given(CHOICES, st.integers(0, 3))
def test_no_partition_has_a_cycle(choices, num_outputs):
    graph = built(choices, num_outputs)
    partition = Partition(list(graph))
    assert nx.is_directed_acyclic_graph(partition.quotient())
    place = {node: idx for idx, node in enumerate(graph)}
    anchors = {
        node: r.anchor for r in partition.regions() for node in r.nodes if node not in r.again
    }
    for region in partition.regions():
        assert region.seconds < region.separate_seconds
        for value in region.inputs:  # what it reads is there before
            if value.producer is not None:
                assert place[anchors.get(value.producer, value.producer)] < place[region.anchor]
        for value in region.outputs:  # what reads it comes after
            for user in value.users:
                if user not in region.nodes:
                    assert place[anchors.get(user, user)] > place[region.anchor]
    assert np.all([len(region.nodes) > 1 for region in partition.regions()])


@settings(max_examples=60, deadline=None)
@given(CHOICES, st.integers(0, 3))
def test_no_products_with_chains_make_a_cycle(choices, num_outputs):
    graph = built(choices, num_outputs)
    nodes = list(graph)
    products = Products(nodes, (), (), {}).regions
    places = {node: region.anchor for region in products for node in region.nodes}
    assert len(places) == sum(len(region.nodes) for region in products)
    partition = Partition(nodes, places, places)
    assert nx.is_directed_acyclic_graph(partition.quotient())
    place = {node: idx for idx, node in enumerate(nodes)}
    anchors = places | {
        node: r.anchor for r in partition.regions() for node in r.nodes if node not in r.again
    }
    for node in nodes:
        for value in node.inputs:
            made = None if value is None else value.producer
            if made is None or anchors.get(made, made) is anchors.get(node, node):
                continue
            if not any(made in region.again for region in partition.regions()):
                assert place[anchors.get(made, made)] < place[anchors.get(node, node)]
    for region in products:
        inside = set(region.nodes)
        for node in region.nodes:
            is_read = any(user not in inside for user, _ in node.output.uses)
            assert is_read == (node.output in region.outputs)
