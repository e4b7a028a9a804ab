"""Traps of quantized models: each is found and mended, and `quantize` makes none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.runtime import OrtRunner
from regraft.frontends.onnx import load_onnx
from regraft.ir.text import parse_module
from regraft.lint import fused, lint, quantized
from regraft.passes.legalize import Legalize
from regraft.passes.protocol import Context
from regraft.passes.quantization import MendQuantized, Quantize

Array = np.ndarray[Any, Any]
SIZE = 96


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


WEIGHT = (generator().standard_normal((SIZE, SIZE)) * 0.1).astype(np.float32)
CODES = np.clip(np.rint(WEIGHT / WEIGHT.std() * 40), -127, 127).astype(np.int8)
SCALE = np.float32(WEIGHT.std() / 40)


def model(nodes: list[Any], constants: dict[str, Any], opset: int = 21, **shapes: Any) -> Any:
    """Returns a model from `x` to `y`; `shapes` overrides the shape of `x`."""
    shape = shapes.get("x", ["B", SIZE])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [
            item if isinstance(item, onnx.TensorProto) else numpy_helper.from_array(item, name)
            for name, item in ((n, c) for n, c in constants.items())
        ],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def node(op_type: str, inputs: str, output: str, domain: str = "", **attrs: Any) -> Any:
    return helper.make_node(op_type, inputs.split(), output.split(), domain=domain, **attrs)


def dynamic(codes: Array, product: str = "MatMulInteger", **shapes: Any) -> Any:
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"), node(product, "q w z wz", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT), node("Mul", "s ws", "t"),
        node("Mul", "f t", "y"),
    ]  # fmt: skip
    zero = np.asarray(128 if codes.dtype == np.uint8 else 0, codes.dtype)
    return model(nodes, {"w": codes, "wz": zero, "ws": SCALE}, **shapes)


def weight_only(kind: Any, scale: Any = SCALE, opset: int = 21) -> Any:
    nodes = [node("DequantizeLinear", "w ws", "d"), node("MatMul", "x d", "y")]
    return model(nodes, {"w": kind, "ws": np.asarray(scale)}, opset)


def scores(kind: Any, step: float) -> Any:
    """Returns two products with a softmax between them, both inputs in `kind`."""
    nodes = [
        node("DequantizeLinear", "w ws", "d"),
        node("QuantizeLinear", "x xs xz", "qx"), node("DequantizeLinear", "qx xs xz", "dx"),
        node("MatMul", "dx d", "h"), node("Softmax", "h", "p"),
        node("QuantizeLinear", "p ps pz", "q"), node("DequantizeLinear", "q ps pz", "dp"),
        node("MatMul", "dp d", "y"),
    ]  # fmt: skip
    middle = (np.iinfo(kind).max + 1) // 2
    constants = {"w": CODES, "ws": SCALE, "xs": np.float32(step), "xz": np.asarray(middle, kind),
                 "ps": np.float32(1 / np.iinfo(kind).max), "pz": np.asarray(0, kind)}  # fmt: skip
    return model(nodes, constants)


def per_channel() -> Any:
    nodes = [
        node("QuantizeLinear", "x s z", "q", axis=1),
        node("DequantizeLinear", "q s z", "y", axis=1),
    ]
    return model(nodes, {"s": np.linspace(0.01, 0.05, SIZE, dtype=np.float32),
                         "z": np.full(SIZE, 128, np.uint8)})  # fmt: skip


def nbits(table: bool = False, **attrs: Any) -> Any:
    constants = {"w": generator(2).integers(0, 255, (SIZE, 3, 16)).astype(np.uint8),
                 "ws": np.full((SIZE, 3), 0.01, np.float32)}  # fmt: skip
    nodes = [node("MatMulNBits", "h w ws" if table else "x w ws", "y", "com.microsoft",
                  K=SIZE, N=SIZE, bits=4, block_size=32, **attrs)]  # fmt: skip
    if table:
        constants["t"] = np.tile(WEIGHT, (4, 1))
        nodes[:0] = [node("Cast", "x", "i", to=TensorProto.INT64), node("Gather", "t i", "h")]
    return model(nodes, constants, x=["B"] if table else ["B", SIZE])


def small_floats(kind: int, opset: int) -> Any:
    scaled = np.rint(WEIGHT / np.abs(WEIGHT).max() * 12) / 2
    return weight_only(helper.make_tensor("w", kind, WEIGHT.shape, scaled.reshape(-1)), opset=opset)


def tied() -> Any:
    table = (CODES.astype(np.float32) * SCALE).T.copy()
    nodes = [
        node("Cast", "x", "i", to=TensorProto.INT64), node("Gather", "t i", "h"),
        node("DequantizeLinear", "w ws", "d"), node("MatMul", "h d", "y"),
    ]  # fmt: skip
    return model(nodes, {"t": table, "w": CODES, "ws": SCALE}, x=["B"])


UNEVEN = CODES.copy()
UNEVEN[:, 1:] //= 8
KERNEL = generator(3).integers(-127, 127, (8, 4, 3, 3)).astype(np.int8)
U8 = (CODES.astype(np.int16) + 128).astype(np.uint8)

TRAPS: dict[str, Any] = {
    "quantized-scores": scores(np.uint8, 0.03),
    "range-of-the-batch": dynamic(CODES),
    "one-scale-per-matrix": dynamic(UNEVEN),
    "unsigned-weights": dynamic(U8),
    "integer-convolution": dynamic(KERNEL, "ConvInteger", x=["B", 4, 9, 9]),
    "range-per-channel": per_channel(),
    "float8-on-cpu": small_floats(TensorProto.FLOAT8E4M3FN, 19),
    "float4-on-cpu": small_floats(TensorProto.FLOAT4E2M1, 23),
    "float-table": nbits(table=True, accuracy_level=4),
    "tied-twice": tied(),
    "dequantized-every-run": scores(np.uint16, 2e-4),
    "no-accuracy-level": nbits(),
    "silent-rounding": weight_only(CODES),
    "refused": small_floats(TensorProto.FLOAT4E2M1, 23),
}
KEPT = {"one-scale-per-matrix", "tied-twice"}
"""What no rewrite can undo: bits that were not stored, and which copy is meant."""


def found(proto: Any, folder: Path, target: str = "ort-cpu") -> set[str]:
    file = folder / "model.onnx"
    onnx.save(proto, file)
    ours = {rule.name for rule in (*quantized.RULES, *fused.RULES)}
    return {item.rule.name for item in lint(load_onnx(file), target, file=file)} & ours


@pytest.mark.parametrize("name", TRAPS)
def test_trap_is_found(name: str, tmp_path: Path) -> None:
    assert name in found(TRAPS[name], tmp_path)


@pytest.mark.parametrize("name", [name for name in TRAPS if name not in KEPT])
def test_mending_ends_it(name: str, tmp_path: Path) -> None:
    module = load_onnx(TRAPS[name])
    ctx = Context(legalizers=legalizers(), target="ort-cpu")
    MendQuantized().run(module, ctx)
    Legalize("ort-cpu").run(module, ctx)
    proto = to_proto(module, profile="ort-cpu")
    assert not found(proto, tmp_path) - KEPT
    if name in ("refused", "float4-on-cpu"):  # there is nothing to compare with
        return
    shape = [3 if size == "B" else size for size in sizes_of(TRAPS[name])]
    x = generator(7).standard_normal(shape).astype(np.float32)
    feeds = {"x": np.rint(np.abs(x) * 9) if len(shape) == 1 else x}
    want, got = OrtRunner(TRAPS[name])(feeds)["y"], OrtRunner(proto)(feeds)["y"]
    # a few roundings of 8 bits, each half of 1/127 of its range, on either side; and a softmax
    # over 96 positions, about 3 codes of 255 each, was rounded by a sixth of itself at most
    bound = 0.1 if name == "quantized-scores" else 0.03
    assert np.linalg.norm(got - want) < bound * np.linalg.norm(want)


@pytest.mark.parametrize("convolves", [True, False])
def test_a_bias_that_older_tools_add_in_integers_is_mended_too(
    convolves: bool, tmp_path: Path
) -> None:
    codes = KERNEL if convolves else CODES
    size = codes.shape[0] if convolves else SIZE
    bias = generator(5).standard_normal(size).astype(np.float32)
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"), node("Mul", "s ws", "t"),
        node("Div", "b t", "bt"), node("Floor", "bt", "bf"),
        node("Cast", "bf", "bi", to=TensorProto.INT32), node("Reshape", "bi shape", "br"),
        node("ConvInteger" if convolves else "MatMulInteger", "q w z wz", "i"),
        node("Add", "i br", "j"), node("Cast", "j", "f", to=TensorProto.FLOAT),
        node("Mul", "f t", "y"),
    ]  # fmt: skip
    shape = [1, size, 1, 1] if convolves else [1, size]
    constants = {"w": codes, "wz": np.asarray(0, np.int8), "ws": SCALE, "b": bias,
                 "shape": np.asarray(shape)}  # fmt: skip
    proto = model(nodes, constants, x=["B", 4, 9, 9] if convolves else ["B", SIZE])
    module = load_onnx(proto)
    ctx = Context(legalizers=legalizers(), target="ort-cpu")
    assert MendQuantized().run(module, ctx).stats["integer-products"] == 1
    Legalize("ort-cpu").run(module, ctx)
    mended = to_proto(module, profile="ort-cpu")
    assert not found(mended, tmp_path) - KEPT
    x = generator(7).standard_normal((3, 4, 9, 9) if convolves else (3, SIZE)).astype(np.float32)
    want, got = (OrtRunner(each)({"x": x})["y"] for each in (proto, mended))
    # roundings of 8 bits on either side, as above
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)


def sizes_of(proto: Any) -> list[Any]:
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


def test_weights_that_saturate_without_vnni(tmp_path: Path) -> None:
    assert "saturating-weights" in found(dynamic(CODES), tmp_path, "onnx")
    assert "saturating-weights" not in found(dynamic(CODES // 2), tmp_path, "onnx")


NET = f"""
module "net"
symbol B
weight @w : f32[{SIZE}, {SIZE}] = random(1)
weight @t : f32[400, {SIZE}] = random(2)

graph(%ids : i64[B]) {{
  %w = weight @w
  %t = weight @t
  %x = gather(%t, %ids) {{axis = 0}}
  %h = matmul(%x, %w)
  %a = relu(%h)
  %y = matmul(%a, %w)
  return %y
}}
"""


@pytest.mark.parametrize(
    "options",
    [{}, {"activations": "static"}, {"weights": "int4"}, {"weights": "uint4"}, {"weights": "int7"}],
    ids=str,
)
def test_our_own_outputs_have_none(options: dict[str, Any], tmp_path: Path) -> None:
    module = parse_module(NET)
    samples = [{"ids": generator(i).integers(0, 400, 16)} for i in range(8)]
    ctx = Context(
        samples=samples, activations=OrtActivations(), legalizers=legalizers(), target="ort-cpu"
    )
    Quantize(**options).run(module, ctx)
    Legalize("ort-cpu").run(module, ctx)
    assert found(to_proto(module, profile="ort-cpu"), tmp_path) == set()
