"""Ten thousand nodes print in half a second and parse in two, on a slow core."""

import time

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim
from regraft.ir.graph import Graph
from regraft.ir.module import Module
from regraft.ir.ops import OPS
from regraft.ir.text import parse_module, print_module
from regraft.ir.types import DType, TensorType


def test_ten_thousand_nodes_print_and_parse_within_their_time() -> None:
    graph = Graph()
    value = graph.add_input("x", TensorType(DType.F32, (Dim.of(graph.scope.symbol("B")), 16)))
    b = Builder(graph, loc=("onnx:/model/layer",))
    for i in range(5_000):
        value = b.op(OPS["add"], value, value)
        value.name = f"/model/layer.{i}/Add_output_0"
        value = b.op(OPS["relu"], value)
    graph.add_output("y", value)
    module = Module(graph)
    start = time.process_time()
    text = print_module(module)
    printed = time.process_time()
    back = parse_module(text)
    parsed = time.process_time()
    assert print_module(back) == text
    assert (printed - start < 0.5, parsed - printed < 2.0) == (True, True)
