"""Generated stacks of unfused transformer-like blocks, as an exporter leaves them.

A block has 46 nodes: two decomposed layer norms, three linear layers with a zero bias, an exact
GELU, two residual additions, and the clutter of exports (double transposes, identities, casts to
the same type, a reshape to a shape just read). Cleanup can remove 18 of them without fusing.

`python -m benchmarks.blocks OUT.onnx --blocks 200` writes a model of 9,200 nodes.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NODES_PER_BLOCK = 46
OPSET = 17

Store = Callable[[str, NDArray[np.generic]], TensorProto]
"""Turns a named array into an initializer: inline, or a reference into an external file."""


@dataclass(slots=True)
class _Stack:
    """Nodes and initializers written so far; `store` decides where the bytes go."""

    store: Store
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    def weight(self, name: str, array: NDArray[np.generic]) -> str:
        self.initializers.append(self.store(name, array))
        return name

    def scalar(self, name: str, number: float) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(number, np.float32), name))
        return name

    def op(self, op_type: str, output: str, *inputs: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attrs))
        return output

    def layer_norm(self, prefix: str, x: str, hidden: int) -> str:
        """Nine nodes: mean, centre, square, variance, epsilon, root, divide, gain, shift."""
        mean = self.op("ReduceMean", f"{prefix}/mean", x, axes=[-1])
        centred = self.op("Sub", f"{prefix}/sub", x, mean)
        square = self.op("Pow", f"{prefix}/pow", centred, self.scalar(f"{prefix}/two", 2.0))
        variance = self.op("ReduceMean", f"{prefix}/var", square, axes=[-1])
        safe = self.op("Add", f"{prefix}/eps_add", variance, self.scalar(f"{prefix}/eps", 1e-5))
        root = self.op("Sqrt", f"{prefix}/sqrt", safe)
        normal = self.op("Div", f"{prefix}/div", centred, root)
        gain = self.weight(f"{prefix}.weight", np.ones(hidden, np.float32))
        scaled = self.op("Mul", f"{prefix}/mul", normal, gain)
        shift = self.weight(f"{prefix}.bias", np.full(hidden, 0.01, np.float32))
        return self.op("Add", f"{prefix}/add", scaled, shift)

    def linear(
        self, prefix: str, x: str, size_in: int, size_out: int, rng: np.random.Generator
    ) -> str:
        """Two nodes: a product and the addition of a bias that is zero."""
        w = rng.standard_normal((size_in, size_out), dtype=np.float32)
        w *= np.float32(0.5 / math.sqrt(size_in))
        product = self.op("MatMul", f"{prefix}/matmul", x, self.weight(f"{prefix}.weight", w))
        bias = self.weight(f"{prefix}.bias", np.zeros(size_out, np.float32))
        return self.op("Add", f"{prefix}/add", product, bias)

    def gelu(self, prefix: str, x: str) -> str:
        """Five nodes: x * (1 + erf(x / sqrt(2))) * 0.5."""
        ratio = self.op("Div", f"{prefix}/div", x, self.scalar(f"{prefix}/root2", math.sqrt(2.0)))
        erf = self.op("Erf", f"{prefix}/erf", ratio)
        one = self.op("Add", f"{prefix}/add", erf, self.scalar(f"{prefix}/one", 1.0))
        product = self.op("Mul", f"{prefix}/mul", x, one)
        return self.op("Mul", f"{prefix}/half_mul", product, self.scalar(f"{prefix}/half", 0.5))

    def twice_transposed(self, prefix: str, x: str) -> str:
        """Two nodes that undo each other."""
        there = self.op("Transpose", f"{prefix}/there", x, perm=[1, 0, 2])
        return self.op("Transpose", f"{prefix}/back", there, perm=[1, 0, 2])

    def same_value(self, prefix: str, x: str) -> str:
        """Four nodes: identity, cast to the type it has, its shape, a reshape to that shape."""
        same = self.op("Identity", f"{prefix}/identity", x)
        cast = self.op("Cast", f"{prefix}/cast", same, to=TensorProto.FLOAT)
        shape = self.op("Shape", f"{prefix}/shape", cast)
        return self.op("Reshape", f"{prefix}/reshape", cast, shape)

    def block(self, prefix: str, x: str, hidden: int, ffn: int, rng: np.random.Generator) -> str:
        """Appends one block of 46 nodes and returns its output, f32[B, S, hidden]."""
        y = self.layer_norm(f"{prefix}.norm1", x, hidden)
        y = self.linear(f"{prefix}.mix", y, hidden, hidden, rng)
        y = self.twice_transposed(f"{prefix}.mix_t", y)
        y = self.same_value(f"{prefix}.mix_same", y)
        x = self.op("Add", f"{prefix}.residual1", x, y)
        y = self.layer_norm(f"{prefix}.norm2", x, hidden)
        y = self.linear(f"{prefix}.up", y, hidden, ffn, rng)
        y = self.gelu(f"{prefix}.gelu", y)
        y = self.linear(f"{prefix}.down", y, ffn, hidden, rng)
        y = self.twice_transposed(f"{prefix}.ffn_t", y)
        y = self.same_value(f"{prefix}.ffn_same", y)
        x = self.op("Add", f"{prefix}.residual2", x, y)
        x = self.twice_transposed(f"{prefix}.out_t", x)
        return self.op("Identity", f"{prefix}.out", x)


def inline(name: str, array: NDArray[np.generic]) -> TensorProto:
    """Returns an initializer that holds its bytes in the file."""
    return numpy_helper.from_array(array, name)


def stack(
    blocks: int, hidden: int = 64, ffn: int = 64, seed: int = 0, store: Store = inline
) -> onnx.ModelProto:
    """Returns a model of `46 * blocks` nodes, f32[B, S, hidden] -> f32[B, S, hidden].

    Args:
        blocks: number of blocks; 20, 200 and 2,000 give 920, 9,200 and 92,000 nodes.
        hidden: width of the residual stream.
        ffn: width inside the feed-forward part.
        seed: of the weights; every block has weights of its own.
        store: what becomes of each weight.
    """
    rng = np.random.default_rng(seed)
    builder = _Stack(store)
    x = "x"
    for idx in range(blocks):
        x = builder.block(f"block{idx}", x, hidden, ffn, rng)
    builder.nodes[-1].output[0] = "y"
    shape: list[str | int | None] = ["batch", "sequence", hidden]
    graph = helper.make_graph(
        builder.nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        builder.initializers,
    )
    return helper.make_model(
        graph, producer_name="blocks", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocks", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args()
    onnx.save_model(stack(options.blocks, options.hidden, options.hidden), options.out)


if __name__ == "__main__":
    main()
