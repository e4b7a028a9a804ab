"""Random ONNX models: typed graphs of twenty-odd operator kinds with symbolic sizes.

Every model runs in ONNX Runtime by construction; inputs are `f32[B, S, 4]` and `f32[B, 1, 4]`, and
weights, masks, constants (0, 1, -1, 2), shape arithmetic and dead branches are mixed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Dims = tuple[int | str, ...]

SIZES: tuple[dict[str, int], ...] = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 2})
"""The bindings every model is run at."""


@dataclass
class Generator:
    """One random model under construction."""

    rng: random.Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    pool: list[tuple[str, Dims]] = field(default_factory=list)

    def name(self) -> str:
        return f"v{len(self.nodes)}_{len(self.weights)}"

    def pick(self, *, min_rank: int = 0) -> tuple[str, Dims]:
        found = [item for item in self.pool if len(item[1]) >= min_rank]
        # recent values make deep graphs, old ones make shared values
        return self.rng.choice(found[-4:] if self.rng.random() < 0.7 else found)

    def const(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def floats(self, *shape: int) -> str:
        seed = self.rng.randrange(1 << 30)
        return self.const(np.random.default_rng(seed).normal(0, 0.5, shape))

    def op(self, op_type: str, inputs: list[str], dims: Dims | None, **attrs: Any) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attrs))
        if dims is not None:
            self.pool.append((name, dims))
        return name

    # -- kinds ------------------------------------------------------------------------------

    def unary(self) -> None:
        x, dims = self.pick()
        kind = self.rng.choice(
            ["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Erf", "Identity", "Softplus", "Floor",
             "HardSigmoid", "LeakyRelu", "Sign", "Dropout"]
        )  # fmt: skip
        self.op(kind, [x], dims)

    def constant_binary(self) -> None:
        x, dims = self.pick()
        kind = self.rng.choice(["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"])
        value = self.rng.choice([0.0, 1.0, -1.0, 2.0, 0.5, 3.0])
        if kind in ("Div", "Pow") and value <= 0:
            value = 2.0
        if kind == "Pow":
            x, value = self.op("Abs", [x], None), self.rng.choice([1.0, 2.0, 0.5])
        last = dims[-1] if dims else None
        if isinstance(last, int) and kind != "Pow" and self.rng.random() < 0.3:
            array: Any = np.full((last,), value, np.float32)
        else:
            array = np.float32(value)
        pair = [x, self.const(array)]
        if kind in ("Add", "Mul", "Sub") and self.rng.random() < 0.3:
            pair.reverse()
        self.op(kind, pair, dims)

    def binary(self) -> None:
        x, dims = self.pick()
        partners = [(n, d) for n, d in self.pool if broadcast(dims, d) is not None]
        y, other = self.rng.choice(partners)
        kind = self.rng.choice(["Add", "Sub", "Mul", "Max", "Min"])
        self.op(kind, [x, y], broadcast(dims, other))

    def transpose(self) -> None:
        x, dims = self.pick(min_rank=2)
        perm = list(range(len(dims)))
        self.rng.shuffle(perm)
        self.op("Transpose", [x], tuple(dims[i] for i in perm), perm=perm)

    def matmul(self) -> None:
        x, dims = self.pick(min_rank=2)
        if isinstance(dims[-1], int):
            width = self.rng.choice([2, 4, 6])
            out = self.op("MatMul", [x, self.floats(dims[-1], width)], (*dims[:-1], width))
            if self.rng.random() < 0.5:
                bias = (
                    self.const(np.zeros(width)) if self.rng.random() < 0.4 else self.floats(width)
                )
                self.op("Add", [out, bias], (*dims[:-1], width))

    def reduce(self) -> None:
        x, dims = self.pick(min_rank=1)
        axis = self.rng.randrange(-len(dims), len(dims))
        keep = self.rng.randrange(2)
        left = list(dims)
        left[axis] = 1
        if not keep:
            del left[axis]
        kind = self.rng.choice(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"])
        self.op(kind, [x], tuple(left), axes=[axis], keepdims=keep)

    def softmax(self) -> None:
        x, dims = self.pick(min_rank=1)
        self.op("Softmax", [x], dims, axis=self.rng.randrange(-len(dims), len(dims)))

    def unsqueeze(self) -> None:
        x, dims = self.pick()
        if len(dims) > 4:
            return
        axis = self.rng.randrange(len(dims) + 1)
        out = self.op(
            "Unsqueeze", [x, self.const([axis], np.int64)], (*dims[:axis], 1, *dims[axis:])
        )
        if self.rng.random() < 0.4:
            self.op("Squeeze", [out, self.const([axis], np.int64)], dims)

    def reshape(self) -> None:
        x, dims = self.pick(min_rank=2)
        shape = self.op("Shape", [x], None)
        axis = self.rng.randrange(len(dims))
        size = self.op("Gather", [shape, self.const(axis, np.int64)], None, axis=0)
        part = self.op("Unsqueeze", [size, self.const([0], np.int64)], None)
        if axis == 0:
            rest = [d for d in dims[1:] if isinstance(d, int)]
            if len(rest) == len(dims) - 1:
                total = int(np.prod(rest))
                target = self.op("Concat", [part, self.const([-1], np.int64)], None, axis=0)
                self.op("Reshape", [x, target], (dims[0], total))
                return
        target = self.op("Concat", [shape, self.const([1], np.int64)], None, axis=0)
        self.op("Reshape", [x, target], (*dims, 1))

    def split_heads(self) -> None:
        x, dims = self.pick(min_rank=2)
        if isinstance(dims[-1], int) and dims[-1] % 2 == 0 and len(dims) < 5:
            new = [0] * (len(dims) - 1) + [2, dims[-1] // 2]
            out = self.op("Reshape", [x, self.const(new, np.int64)], (*dims[:-1], 2, dims[-1] // 2))
            if self.rng.random() < 0.5:
                back = [0] * (len(dims) - 1) + [-1]
                self.op("Reshape", [out, self.const(back, np.int64)], dims)

    def slice(self) -> None:
        x, dims = self.pick(min_rank=1)
        axis = self.rng.randrange(len(dims))
        size = dims[axis]
        if not isinstance(size, int):
            ends = self.const([np.iinfo(np.int64).max], np.int64)
            args = [x, self.const([0], np.int64), ends, self.const([axis], np.int64)]
            self.op("Slice", args, dims)
            return
        start = self.rng.randrange(size)
        stop = self.rng.randrange(start + 1, size + 1)
        args = [x, self.const([start], np.int64), self.const([stop], np.int64)]
        args.append(self.const([axis], np.int64))
        self.op("Slice", args, (*dims[:axis], stop - start, *dims[axis + 1 :]))

    def concat(self) -> None:
        x, dims = self.pick(min_rank=1)
        axis = self.rng.randrange(len(dims))
        if isinstance(dims[axis], int):
            same = [n for n, d in self.pool if d == dims]
            total = dims[axis] * 2
            self.op(
                "Concat", [x, self.rng.choice(same)], (*dims[:axis], total, *dims[axis + 1 :]),
                axis=axis,
            )  # fmt: skip

    def where(self) -> None:
        x, dims = self.pick()
        same = [n for n, d in self.pool if d == dims]
        y = self.rng.choice(same)
        mask = self.op("Greater", [x, self.const(np.float32(0))], None)
        self.op("Where", [mask, x, y], dims)

    def clip(self) -> None:
        x, dims = self.pick()
        low = self.rng.choice([-1.0, 0.0, 0.25])
        high = low + self.rng.choice([0.5, 2.0])
        args = [x, self.const(np.float32(low)), self.const(np.float32(high))]
        self.op("Clip", args, dims)

    def layer_norm(self) -> None:
        x, dims = self.pick(min_rank=1)
        if not isinstance(dims[-1], int) or dims[-1] < 2:
            return
        mean = self.op("ReduceMean", [x], None, axes=[-1], keepdims=1)
        centered = self.op("Sub", [x, mean], None)
        square = self.op("Pow", [centered, self.const(np.float32(2))], None)
        var = self.op("ReduceMean", [square], None, axes=[-1], keepdims=1)
        safe = self.op("Add", [var, self.const(np.float32(1e-3))], None)
        normal = self.op("Div", [centered, self.op("Sqrt", [safe], None)], None)
        gained = self.op("Mul", [normal, self.floats(dims[-1])], None)
        self.op("Add", [gained, self.floats(dims[-1])], dims)

    def gelu(self) -> None:
        x, dims = self.pick()
        scaled = self.op("Div", [x, self.const(np.float32(2**0.5))], None)
        erf = self.op("Erf", [scaled], None)
        half = self.op("Mul", [x, self.op("Add", [erf, self.const(np.float32(1))], None)], None)
        self.op("Mul", [half, self.const(np.float32(0.5))], dims)

    def expand(self) -> None:
        x, dims = self.pick(min_rank=1)
        shape = self.op("Shape", [self.rng.choice([n for n, d in self.pool if d == dims])], None)
        self.op("Expand", [x, shape], dims)

    def cast(self) -> None:
        x, dims = self.pick()
        kind = self.rng.choice([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32])
        out = self.op("Cast", [x], None, to=kind)
        self.op("Cast", [out], dims, to=TensorProto.FLOAT)

    def branch(self) -> None:
        x, dims = self.pick()
        name = self.name()
        bodies = {}
        for side, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
            out = f"{name}_{side}"
            info = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
            body = helper.make_graph([helper.make_node(op_type, [x], [out])], side, [], [info])
            bodies[side] = body
        if self.rng.random() < 0.5:
            cond = self.const(self.rng.random() < 0.5, np.bool_)
        else:
            total = self.op("ReduceSum", [x], None, keepdims=0)
            cond = self.op("Greater", [total, self.const(np.float32(0))], None)
        name = self.name()
        self.nodes.append(helper.make_node("If", [cond], [name], **bodies))
        self.pool.append((name, dims))


KINDS: tuple[Callable[[Generator], None], ...] = (
    Generator.unary, Generator.unary, Generator.constant_binary, Generator.constant_binary,
    Generator.binary, Generator.binary, Generator.transpose, Generator.transpose,
    Generator.matmul, Generator.reduce, Generator.softmax, Generator.unsqueeze,
    Generator.reshape, Generator.split_heads, Generator.slice, Generator.concat,
    Generator.where, Generator.clip, Generator.layer_norm, Generator.gelu, Generator.expand,
    Generator.cast, Generator.branch,
)  # fmt: skip


def broadcast(a: Dims, b: Dims) -> Dims | None:
    """Returns the broadcast of two shapes, None where it is not certain."""
    result: list[int | str] = []
    for i in range(1, max(len(a), len(b)) + 1):
        x = a[-i] if i <= len(a) else 1
        y = b[-i] if i <= len(b) else 1
        if x != y and 1 not in (x, y):
            return None
        result.append(y if x == 1 else x)
    return tuple(reversed(result))


def random_model(seed: int) -> onnx.ModelProto:
    """Returns the model of a seed: 4 to 18 steps, one to three outputs."""
    rng = random.Random(seed)
    made = Generator(rng)
    made.pool = [("x", ("B", "S", 4)), ("y", ("B", 1, 4))]
    for _ in range(rng.randrange(4, 19)):
        rng.choice(KINDS)(made)
    fresh = [item for item in made.pool if item[0] not in ("x", "y")] or made.pool
    outputs = list(dict.fromkeys([fresh[-1], *rng.sample(fresh, min(2, len(fresh)))]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", ("B", "S", 4)), ("y", ("B", 1, 4)))
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outputs]
    if not made.nodes:
        made.nodes.append(helper.make_node("Identity", ["x"], ["z"]))
        infos = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ("B", "S", 4))]
    graph = helper.make_graph(made.nodes, "fuzz", inputs, infos, made.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model


def random_inputs(seed: int, sizes: dict[str, int]) -> dict[str, Array]:
    """Returns inputs of the given sizes."""
    rng = np.random.default_rng(seed)
    batch, length = sizes["B"], sizes["S"]
    return {
        "x": rng.normal(size=(batch, length, 4)).astype(np.float32),
        "y": rng.normal(size=(batch, 1, 4)).astype(np.float32),
    }
