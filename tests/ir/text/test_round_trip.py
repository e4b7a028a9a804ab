"""The text form: parse after print gives an equal module and the same text."""

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.ir.builder import Builder
from regraft.ir.compare import differences
from regraft.ir.constants import Blob, literal, opaque
from regraft.ir.dims import Dim, ceildiv, dim_max, dim_min, exactdiv, floordiv, mod
from regraft.ir.graph import Graph
from regraft.ir.module import Module, State, StateKind
from regraft.ir.ops import OPS
from regraft.ir.text import parse_graph, parse_module, print_module, print_node
from regraft.ir.types import (
    DType,
    MapType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
)
from regraft.ir.weights import unpack

F32 = DType.F32


def round_trip(module: Module) -> Module:
    text = print_module(module, weights="inline")
    back = parse_module(text)
    assert print_module(back, weights="inline") == text
    assert differences(module, back) == []
    return back


def opaque_module(value: Any) -> Module:
    graph = Graph()
    attrs = {"dialect": "onnx:x", "op_type": "F", "attributes": (("a", value),)}
    node = graph.create(opaque, (), attrs, num_outputs=1)
    graph.add_output("y", node.output)
    return Module(graph)


def literal_module(array: np.ndarray[Any, Any]) -> Module:
    graph = Graph()
    graph.add_output("y", graph.create(literal, (), {"value": array}).output)
    return Module(graph)


def test_module_with_every_header_line_round_trips() -> None:
    module = Module(Graph(), 'a "quoted"\nname', level="ort-cpu")
    scope = module.graph.scope
    batch = Dim.of(scope.symbol("B"))
    past = Dim.of(scope.symbol("P", lo=0, hi=4096, multiple_of=8))
    unknown = scope.fresh()
    scope.assume_equal(batch, past + 1, "broadcast in add")
    module.meta = {"onnx.opset": 17, "key": "va\\lue", "list": (1, 2.0, "x"), "map": {"a": None}}
    module.states = (State("kv", "past", "present", StateKind.KV_CACHE),)
    x = module.graph.add_input("past", TensorType(F32, (batch, past + 1, unknown)))
    module.graph.add_output("present", x)
    back = round_trip(module)
    assert str(module) == print_module(module)
    assert back.symbols["P"].multiple_of == 8
    assert back.symbols["u0"].defined


def test_names_that_are_no_identifiers_are_quoted() -> None:
    graph = Graph()
    x = graph.add_input("/model/layer.0/Add:0", TensorType(F32, (2,)))
    y = graph.add_input("0", TensorType(F32, (2,)))
    graph.add_output('out "1"', Builder(graph).op(OPS["add"], x, y))
    back = round_trip(Module(graph))
    assert [v.name for v in back.graph.inputs] == ["/model/layer.0/Add:0", "0"]
    assert back.graph.output_names == ['out "1"']


def test_equal_names_become_unique_and_stay_so() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (2,)))
    first = Builder(graph).op(OPS["relu"], x)
    second = Builder(graph).op(OPS["relu"], first)
    first.name, second.name = "x", "x.1"
    graph.add_output("x", second)
    text = print_module(Module(graph))
    assert "%x.2 = relu(%x)" in text
    assert "%x.1 = relu(%x.2)" in text
    assert print_module(parse_module(text)) == text


def test_anonymous_values_are_numbered_in_order() -> None:
    graph = parse_graph("graph(%x : f32[2]) {\n%7 = relu(%x)\n%3 = relu(%7)\nreturn %3 as %y\n}")
    assert [node.output.name for node in graph] == [None, None]
    assert "%1 = relu(%0) : f32[2]\n  return %1 as %y" in print_module(Module(graph))


@pytest.mark.parametrize(
    "type_",
    [
        TensorType(),
        TensorType(F32, None),
        TensorType(None, (2, 3)),
        TensorType(DType.STRING, ()),
        SequenceType(TensorType(F32, None)),
        SequenceType(None),
        OptionalType(SequenceType(TensorType(DType.I64, (1,)))),
        MapType(DType.I64, TensorType(F32, None)),
        SparseTensorType(F32, (3, 4)),
    ],
    ids=str,
)
def test_types_round_trip(type_: Any) -> None:
    graph = Graph()
    graph.add_output("x", graph.add_input("x", type_))
    round_trip(Module(graph))
    round_trip(opaque_module((type_, "after")))


SYMBOLS = [Dim.of(name) for name in ("B", "S", "P", "min", "f32", "odd name")]


@st.composite
def dims(draw: st.DrawFn) -> Any:
    value: Any = draw(st.sampled_from(SYMBOLS))
    for _ in range(draw(st.integers(0, 4))):
        other = draw(st.one_of(st.sampled_from(SYMBOLS), st.integers(1, 12)))
        value = draw(
            st.sampled_from(
                [
                    lambda a, b: a + b,
                    lambda a, b: a - b,
                    lambda a, b: a * b,
                    floordiv,
                    ceildiv,
                    mod,
                    exactdiv,
                    dim_min,
                    dim_max,
                ]
            )
        )(value, other)
    return value


@given(st.lists(dims(), max_size=3))
def test_dims_round_trip(sizes: list[Any]) -> None:
    graph = Graph()
    for symbol in SYMBOLS:
        name = symbol.as_symbol()
        assert name is not None
        graph.scope.symbol(name.name)
    graph.add_output("x", graph.add_input("x", TensorType(F32, tuple(sizes))))
    round_trip(Module(graph))


@given(st.integers(0, 2**64 - 1))
def test_float_attributes_keep_their_bits(bits: int) -> None:
    value = struct.unpack("<d", struct.pack("<Q", bits))[0]
    back = round_trip(opaque_module(value)).graph.first
    assert back is not None
    ((_, read),) = back.attrs["attributes"]
    assert struct.pack("<d", read) == struct.pack("<d", value) or math.isnan(value)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.STRING], ids=str)
@given(raw=st.binary(min_size=1, max_size=40))
def test_arrays_keep_their_bits_in_every_dtype(dtype: DType, raw: bytes) -> None:
    size = len(raw) * 8 // dtype.bits
    data = np.frombuffer(raw[: dtype.nbytes(size)], np.uint8)
    if dtype is DType.BOOL:
        data = data & 1
    round_trip(literal_module(unpack(data, dtype, (size,))))


@pytest.mark.parametrize(
    "array",
    [
        np.asarray(0.1, np.float32),
        np.zeros((0, 3), np.float32),
        np.full((3, 5), -np.inf, np.float16),
        np.arange(1000, dtype=np.int64).reshape(10, 100),
        np.array([["a", 'b"\n'], ["", "ü\u2028"]], object),
        np.array([b"\xff\x00", "text"], object),
        np.array([1 + 2j], np.complex64),
        np.array([2**64 - 1], np.uint64),
        np.array(True),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_of_every_shape_round_trip(array: np.ndarray[Any, Any]) -> None:
    round_trip(literal_module(array))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2**70,
        0.0,
        -0.0,
        1e300,
        "tab\tand \u00fc and \ud800",
        b"\x00\xff",
        (),
        ((1, "a"), (0.5, None)),
        DType.BF16,
        (DType.F32, TensorType(F32, (2,)), np.arange(3, dtype=np.float32)),
        Blob("onnx.AttributeProto", b"\x0a\x01x"),
        {"key": (1, {"inner": "x"})},
    ],
    ids=repr,
)
def test_attribute_values_round_trip(value: Any) -> None:
    round_trip(opaque_module(value))


def test_origins_round_trip() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (2,)))
    loc = ("onnx:/a/Add", "line, with comma", "two\nlines", 'q"', "rule:fold", " space ")
    graph.add_output("y", graph.create(OPS["relu"], (x,), loc=loc).output)
    back = round_trip(Module(graph))
    assert back.graph.first is not None
    assert back.graph.first.loc == loc
    assert "onnx:/a/Add" not in print_module(back, origins=False)


def test_absent_operands_keep_their_slot() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (2,)))
    attrs = {"dialect": "onnx:x", "op_type": "F"}
    node = graph.create(opaque, (None, x, None), attrs, num_outputs=2)
    graph.add_output("y", node.outputs[1])
    assert "opaque(_, %x, _)" in print_module(Module(graph))
    round_trip(Module(graph))


def test_bodies_round_trip_with_captured_content() -> None:
    graph = Graph()
    outer = Builder(graph).op(literal, value=np.array([3, 4], np.int64))
    body = Graph(graph.scope)
    inner = body.add_input("captured", outer.type)
    inner.content = outer.content
    body.add_output("r", inner)
    empty = Graph(graph.scope)
    empty.add_output("r", empty.add_input(None, outer.type))
    empty.inputs[0].content = outer.content
    attrs = {"dialect": "onnx:", "op_type": "If", "num_captures": 1}
    node = graph.create(opaque, (outer,), attrs, num_outputs=1, bodies=(body, empty), loc=("if",))
    graph.add_output("y", node.output)
    back = round_trip(Module(graph)).graph.last
    assert back is not None
    assert back.bodies[0].inputs[0].content == (3, 4)
    assert back.loc == ("if",)


def test_declared_types_stay_where_inference_knows_less() -> None:
    text = (
        "symbol u0 lo=0 defined\n\n"
        "graph(%x : ?[*]) {\n  %y = relu(%x) : f32[u0, 4]\n  return %y\n}\n"
    )
    module = parse_module(text)
    assert str(module.graph.outputs[0].type) == "f32[u0, 4]"
    assert print_module(module).endswith(text)


def test_print_node_is_one_line() -> None:
    graph = parse_graph("graph(%x : f32[2]) {\n%y = relu(%x)  // here\nreturn %y\n}")
    assert graph.first is not None
    assert print_node(graph.first) == "%y = relu(%x) : f32[2]  // here"
