"""Writing a feed-forward block as shared channels and experts that are parts of it.

`y = shared(x) + sum over the chosen e of expert_e(x) + bias`. Every chosen expert has weight 1: the
operator's `weight_gain` is a weight of zeros, which training moves (CMoE, eq. 9). Where the mean of
what experts give is made up for, expert e gives `expert_e(x) - m_e`, and the sum of all `m_e` is
added: with all experts chosen nothing changes. The `m_e` are rounded so that their sum has no
error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import weight
from regraft.ir.graph import Graph, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg, moe
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.experts.dense import Dense
from regraft.passes.experts.parts import Parts
from regraft.passes.experts.routers import Router
from regraft.passes.experts.written import channels_last, laid_out, name_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Divided:
    """A block's weights as parts.

    Args:
        dense: The block's.
        parts: Who has which channels.
        router: Who is chosen.
        means: f64[E, O], what experts give on mean and others make up for; None: nothing.
        scale: What the chosen are multiplied by.
    """

    dense: Dense
    parts: Parts
    router: Router
    means: Array | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """How many experts compute a token.

    Args:
        top_k: At most so many.
        select: `top_k`, `top_p`, `threshold` or `expert_choice`.
        threshold: Of `top_p` and `threshold`.
        capacity: Of `expert_choice`, or of experts; 0: all that choose it.
    """

    top_k: int
    select: str = "top_k"
    threshold: float = 0.0
    capacity: float = 0.0


def add_divided(module: Module, block: FfnBlock, made: Divided) -> dict[str, str]:
    """Adds the weights as parameters; returns their names by what they are."""
    prefix = name_of(block)
    sources = tuple(
        str(layer.weight.name)
        for layer in (block.up, block.gate, block.down)
        if layer is not None and layer.weight.name in module.weights
    )
    dtype = made.dense.up.dtype
    contents = {
        **{f"experts.{name}": array for name, array in _experts(made).items()},
        **{f"shared.{name}": array for name, array in _shared(made).items()},
        **{f"router.{name}": array for name, array in _router(made).items()},
    }
    return {
        name: module.weights.add(
            f"{prefix}.{name}", ArrayWeight(np.ascontiguousarray(array, dtype), sources), Role.PARAM
        )
        for name, array in contents.items()
    }


def _experts(made: Divided) -> dict[str, Array]:
    """Returns the operands of `moe`, narrow experts filled up with zeros."""
    dense, widest = made.dense, max(made.parts.widths)

    def padded(rows: Array, own: Array) -> Array:
        picked = rows[own]
        fill = np.zeros((widest - len(own), *rows.shape[1:]), rows.dtype)
        return np.concatenate([picked, fill])

    found = {}
    for name in ("up", "gate", "up_bias", "gate_bias"):
        rows = getattr(dense, name)
        if rows is not None:
            found[name] = np.stack([padded(rows, own) for own in made.parts.experts])
    columns = [padded(dense.down.T, own).T for own in made.parts.experts]
    found["down"] = np.stack(columns)
    if made.means is not None:
        found["down_bias"] = -_exact(made.means, dense.up.dtype)
    found["weight_gain"] = np.zeros(len(made.parts.experts))
    return found


def _shared(made: Divided) -> dict[str, Array]:
    """Returns the shared block's matrices as products read them, [in, out], and its biases."""
    dense, own = made.dense, made.parts.shared
    found = {}
    if len(own):
        found["up"] = dense.up[own].T
        found["down"] = dense.down[:, own].T
        for name in ("up_bias", "gate_bias"):
            bias = getattr(dense, name)
            if bias is not None:
                found[name] = bias[own]
        if dense.gate is not None:
            found["gate"] = dense.gate[own].T
    if dense.down_bias is not None:
        found["down_bias"] = dense.down_bias
    if made.means is not None:
        found["mean"] = _exact(made.means, dense.up.dtype).sum(0)
    return found


def _exact(means: Array, dtype: np.dtype[Any]) -> Array:
    """Returns f64[E, O] rounded to steps of which a number of the type has enough for the sum."""
    bits = ml_dtypes.finfo(dtype).nmant
    largest = np.abs(means).sum(0).max()
    step = 2.0 ** (np.ceil(np.log2(largest)) + 1 - bits) if largest else 1.0
    found: Array = np.rint(means / step) * step
    return found


def _router(made: Divided) -> dict[str, Array]:
    """Returns its matrices [D, E] and biases: of a linear router `rows`, else `up` and `gate`."""
    router, dense = made.router, made.dense
    if router.channels is None:
        if router.rows is None:
            return {}
        found = {"rows": router.rows.T}
        return found if router.bias is None else {**found, "bias": router.bias}
    found = {"up": dense.up[router.channels].T}
    if dense.gate is not None:
        found["gate"] = dense.gate[router.channels].T
    for name in ("up_bias", "gate_bias"):
        bias = getattr(dense, name)
        if bias is not None:
            found[name] = bias[router.channels]
    return found


def write_divided(
    graph: Graph,
    block: FfnBlock,
    names: dict[str, str],
    made: Divided,
    choice: Choice,
    scores: Value | None = None,
) -> None:
    """Replaces the result of a block by those of its parts; `scores`: of a router elsewhere."""
    node = block.down.nodes[0]
    b = Builder(graph, node, node.loc)
    x = channels_last(b, block.up.input, block.up.in_axis)
    writer = _Writer(b, x, names, block.activation)
    if scores is None:
        scores = writer.scores()
    operands = [
        writer.weight(f"experts.{each.name}") if f"experts.{each.name}" in names else None
        for each in moe.moe.operands[2:]
    ]
    widths = made.parts.widths
    result = b.op(
        moe.moe, x, scores, *operands, top_k=choice.top_k, activation=block.activation,
        scoring="softmax", routed_scale=made.scale, select=choice.select,
        threshold=choice.threshold, capacity=choice.capacity,
        widths=() if len(set(widths)) == 1 else widths,
    )  # fmt: skip
    if len(made.parts.shared):
        result = b.op(arithmetic.add, writer.hidden_product("shared", "down"), result)
    if "shared.down_bias" in names:
        result = b.op(arithmetic.add, result, writer.weight("shared.down_bias"))
    if "shared.mean" in names:
        result = b.op(arithmetic.add, result, writer.mean(made.scale))
    graph.replace(node, [laid_out(b, result, block.down.output, block.down.out_axis)])


@dataclass(frozen=True, slots=True, eq=False)
class _Writer:
    """Writes parts of a block over rows x.

    Args:
        b: Where.
        x: f[*b, D].
        names: Of the weights.
        activation: Of the hidden channels.
    """

    b: Builder
    x: Value
    names: dict[str, str]
    activation: str

    def weight(self, name: str) -> Value:
        """Returns a weight by what it is."""
        value = self.b.op(weight, name=self.names[name])
        value.name = self.names[name]
        return value

    def project(self, part: str, name: str) -> Value:
        """Returns x times a matrix, with its bias."""
        result = self.b.op(linalg.matmul, self.x, self.weight(f"{part}.{name}"))
        bias = f"{part}.{name}_bias"
        if bias not in self.names:
            return result
        return self.b.op(arithmetic.add, result, self.weight(bias))

    def hidden(self, part: str) -> Value:
        """Returns hidden channels behind the activation."""
        act = moe.ACTIVATIONS[self.activation]
        if f"{part}.gate" not in self.names:
            return act.write(self.b, self.project(part, "up"))
        gate = act.write(self.b, self.project(part, "gate"))
        return self.b.op(arithmetic.mul, gate, self.project(part, "up"))

    def hidden_product(self, part: str, name: str) -> Value:
        """Returns hidden channels times a matrix."""
        return self.b.op(linalg.matmul, self.hidden(part), self.weight(f"{part}.{name}"))

    def mean(self, scale: float) -> Value:
        """Returns what experts that are not chosen give on mean."""
        mean = self.weight("shared.mean")
        if scale == 1:
            return mean
        return self.b.op(arithmetic.mul, mean, self.b.constant(scale, mean.dtype))

    def scores(self) -> Value:
        """Returns the scores of the experts."""
        if "router.rows" not in self.names:
            return self.b.op(arithmetic.abs_, self.hidden("router"))
        scores = self.b.op(linalg.matmul, self.x, self.weight("router.rows"))
        if "router.bias" not in self.names:
            return scores
        return self.b.op(arithmetic.add, scores, self.weight("router.bias"))
