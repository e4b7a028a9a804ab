"""The files that the snapshot cases name: tiny models, samples, a plugin, a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from regraft.ir.safetensors import write_safetensors
from regraft.ir.weights import ArrayWeight

TEXT = """\
module "tiny"

graph(%x : f32[B, 4]) {
  %a = neg(%x)
  %b = neg(%a)
  %y = relu(%b)
  return %y
}
"""

WIDE = """\
module "wide"

symbol B

weight @up : f32[4, 8] role=param = random(1)
weight @down : f32[8, 3] role=param = random(2)

graph(%x : f32[B, 4]) {
  %w1 = weight @up
  %h = matmul(%x, %w1)
  %a = relu(%h)
  %w2 = weight @down
  %y = matmul(%a, %w2)
  return %y
}
"""

ENCODER = """\
module "encoder"

symbol B
symbol S

weight @table : f32[8, 32] role=param = random(1)
weight @up : f32[32, 48] role=param = random(2)
weight @down : f32[48, 32] role=param = random(3)

graph(%input_ids : i64[B, S], %attention_mask : i64[B, S]) {
  %table = weight @table
  %x = gather(%table, %input_ids) {axis = 0}
  %w1 = weight @up
  %h = matmul(%x, %w1)
  %a = relu(%h)
  %w2 = weight @down
  %y = matmul(%a, %w2)
  %m = cast(%attention_mask) {to = f32}
  %n = unsqueeze(%m) {axes = [-1]}
  %k = mul(%y, %n)
  %embedding = reduce_mean(%k) {axes = [1]}
  return %embedding
}
"""

SHAPES = {"up": (4, 8), "down": (8, 3)}
CUT = {"up": (4, 4), "down": (4, 3)}
"""The weights of `wide.rg` before and after half of its parameters."""

PLUGIN = '''\
from dataclasses import dataclass
from typing import ClassVar

from regraft import Context, Exact, Lossy, Module, PassResult, Plugin, Rule
from regraft.ir.ops import OPS
from regraft.ir.opspec import Operand, OpSpec


class ReluIsNothing(Rule):
    """Wrong on purpose."""

    def pattern(self, p, x):
        return p.relu(x)

    def apply(self, plan, b, x):
        return x


@dataclass(frozen=True, slots=True)
class DropRelu:
    """Removes every relu, past every rule."""

    name: ClassVar = "drop-relu"
    contract: ClassVar = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        for node in module.graph:
            if node.op is OPS["relu"]:
                module.graph.replace(node, [node.inputs[0]])
        return PassResult(True)


@dataclass(frozen=True, slots=True)
class Forget:
    """Does nothing and promises little."""

    name: ClassVar = "forget"
    contract: ClassVar = Lossy("accuracy")

    def run(self, module: Module, ctx: Context) -> PassResult:
        return PassResult(False)


TWICE = OpSpec(
    name="acme.twice", source="this file", operands=(Operand("x"),), axes="*b -> *b",
    eval=lambda c, x: x + x,
)
PLUGIN = Plugin(
    api_version=1, name="acme", passes=(DropRelu, Forget), rules=(ReluIsNothing(),),
    operators=(TWICE,),
)
LATER = Plugin(api_version=2, name="later")
CLASH = Plugin(api_version=1, name="clash", passes=(type("C", (), {"name": "canonicalize"}),))
OUTSIDE = Plugin(
    api_version=1, name="other", operators=(OpSpec(name="twice", source="this file"),)
)
NUMBER = 3
'''

TRAPS = """\
module "traps"

symbol x_0

graph(%x : f16[x_0, 4], %z : f16[4]) {
  %m = literal f16[] -inf
  %a = add(%x, %m)
  %y = softmax(%a)
  return %y
}
"""

RECIPE = """\
regraft: 1
target: onnx
opset: 17
freeze: {batch: 2}
passes:
  - canonicalize: {max-fold-bytes: 4096}
"""


def model(scale: float = 2.0, name: str = "y") -> onnx.ModelProto:
    """Returns transpose, transpose, matmul, add zero, relu, mul: f32[batch, 4] to f32[batch, 3]."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 4 - 1
    zero, factor = np.zeros(3, np.float32), np.full(1, scale, np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Transpose", ["t"], ["tt"], perm=[1, 0]),
        helper.make_node("MatMul", ["tt", "w"], ["m"]),
        helper.make_node("Add", ["m", "zero"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Mul", ["r", "factor"], [name]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("w", weight), ("zero", zero), ("factor", factor))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def populate(folder: Path) -> None:
    """Writes all files into a folder."""
    onnx.save(model(), folder / "model.onnx")
    onnx.save(model(3.0), folder / "other.onnx")
    onnx.save(model(2.0, "z"), folder / "renamed.onnx")
    (folder / "broken.onnx").write_bytes((folder / "model.onnx").read_bytes()[:100])
    (folder / "model.rg").write_text(TEXT)
    (folder / "wide.rg").write_text(WIDE)
    (folder / "encoder.rg").write_text(ENCODER)
    whole = {name: ArrayWeight(np.ones(shape, np.float32)) for name, shape in SHAPES.items()}
    write_safetensors(folder / "whole.safetensors", whole)
    cut = {name: ArrayWeight(np.zeros(shape, np.float32)) for name, shape in CUT.items()}
    write_safetensors(folder / "cut.safetensors", cut)
    (folder / "traps.rg").write_text(TRAPS)
    (folder / "wrong.rg").write_text(TEXT.replace("relu", "rellu"))
    twice = TEXT.replace("neg(%x)", "acme.twice(%x)")
    (folder / "twice.rg").write_text(twice)
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "failing.py").write_text("1 / 0\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "bad-recipe.yaml").write_text(RECIPE + "tagret: onnx\n")
    (folder / "exists").mkdir()
    (folder / "samples").mkdir()
    rng = np.random.default_rng(0)
    for i, batch in enumerate((1, 2)):
        np.savez(
            folder / "samples" / f"{i}.npz", x=rng.standard_normal((batch, 4)).astype(np.float32)
        )
    (folder / "tokens").mkdir()
    for i in range(4):
        ids = rng.integers(0, 8, (2, 6))
        np.savez(folder / "tokens" / f"{i}.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    labelled = np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)
    np.savez(folder / "labelled.npz", x=labelled, labels=np.arange(40) % 3)
    (folder / "text.txt").write_text("one\ntwo\n")
    np.savez(folder / "bad-shape.npz", x=np.zeros((2, 5), np.float32))
    np.savez(folder / "bad-name.npz", input=np.zeros((2, 4), np.float32))
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "module.py").write_text("")
    (folder / "model.pt2").write_bytes(b"")
