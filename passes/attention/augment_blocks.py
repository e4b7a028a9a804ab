"""The pass `augment-blocks`: more nonlinearity in narrow layers, at next to no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import activation, arithmetic, attention, functions, linalg
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.analysis.blocks import graphs_of, recognize
from regraft.passes.analysis.ffn import FfnBlock
from regraft.passes.analysis.residual import Residual, streams
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

_ACTIVATIONS = frozenset({
    activation.relu, activation.leaky_relu, activation.elu, activation.selu, activation.celu,
    activation.sigmoid, activation.hard_sigmoid, activation.hard_swish, activation.swish,
    activation.mish, activation.softplus, activation.softsign, activation.gelu, functions.tanh,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class AugmentBlocks:
    """Adds series of activations and shortcuts beside attention, both of which begin at nothing.

    ## What it does
    The activation s of every feed-forward block becomes a sum of `terms` of it, a_1 s(x + b_1) +
    a_2 s(x + b_2) + …, with learned a and b per channel that begin at a = (1, 0, …) and b = 0.
    Beside every attention block whose result is added to the stream x, `shortcuts` branches of
    relu(x U) V are added as well; U is drawn, V begins at 0, both have `rank` channels between
    them. What is learned becomes weights named `block.<number>.<what>`.

    ## When it applies
    To recognized feed-forward blocks with an activation that is one operator, and to residual sums
    whose branch has attention. Others are reported.

    ## Example
    ```
    %y = relu(%x)
    ```
    with `augment-blocks{terms=2,shortcuts=0}` becomes
    ```
    %y = add(mul(%a1, relu(add(%x, %b1))), mul(%a2, relu(add(%x, %b2))))
    ```

    ## Exactness
    Exact to begin with; training changes what is added.

    ## References
    Wang et al., PanGu-π: Enhancing Language Model Architectures via Nonlinearity Compensation,
    2023.

    Args:
        terms: Activations in a series; 1 leaves activations.
        shortcuts: Branches beside every attention block.
        rank: Channels between the two products of a branch.
        seed: Seed of what is drawn.
    """

    name: ClassVar[str] = "augment-blocks"
    contract: ClassVar[Contract] = Exact()

    terms: int = 2
    shortcuts: int = 1
    rank: int = 8
    seed: int = 0

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Adds what is asked for.

        Raises:
            UsageError: For sizes below their least.
        """
        for name, value, least in (
            ("terms", self.terms, 1), ("shortcuts", self.shortcuts, 0), ("rank", self.rank, 1),
        ):  # fmt: skip
            if value < least:
                raise UsageError(
                    f"pass `{self.name}`, option `{name}`: {value} is not allowed",
                    hint=f"it is {least} or more",
                )
        raised = Fuse().run(module, ctx)
        skipped: list[Skip] = []
        series = branches = 0
        if self.terms > 1:
            for number, block in enumerate(recognize(module).ffn):
                reason = self._series(block, number)
                series += not reason
                if reason:
                    skipped.append(Skip(str(block.output.name), f"activation: {reason}"))
        if self.shortcuts:
            for number, residual in enumerate(_attending(module)):
                reason = self._shortcut(residual, number)
                branches += not reason
                if reason:
                    skipped.append(Skip(str(residual.output.name), f"shortcut: {reason}"))
        changed = raised.changed or series + branches > 0
        return PassResult(changed, {"series": series, "shortcuts": branches}, tuple(skipped))

    def _series(self, block: FfnBlock, number: int) -> str:
        """Puts a series in place of a block's activation; returns why it cannot, or ""."""
        found = [node for node in block.nodes if node.op in _ACTIVATIONS]
        if len(found) != 1:
            return "it is not one operator"
        (node,) = found
        x, graph = node.inputs[0], node.graph
        size = None if x is None or x.shape is None else x.shape[block.axis]
        if x is None or graph is None or x.dtype is None or not isinstance(size, int):
            return "the number of its channels is not known"
        shape = (size, *(1 for _ in range(-1 - block.axis)))
        add = _Weights(Builder(graph, node, node.loc), f"block.{number}.activation", x.dtype.numpy)
        b = add.b
        total: Value | None = None
        for i in range(self.terms):
            moved = b.op(arithmetic.add, x, add.weight(f"shift{i}", np.zeros(shape)))
            term = b.op(node.op, moved, *node.inputs[1:], **node.attrs)
            gain = add.weight(f"gain{i}", np.full(shape, float(i == 0)))
            term = b.op(arithmetic.mul, term, gain)
            total = term if total is None else b.op(arithmetic.add, total, term)
        assert total is not None, "a series has a term"
        graph.replace(node, (total,), rule=self.name)
        return ""

    def _shortcut(self, residual: Residual, number: int) -> str:
        """Adds branches to what attention adds; returns why it cannot, or ""."""
        x, y, graph = residual.skip, residual.branch, residual.node.graph
        width = None if x.shape is None else x.shape[-1]
        if graph is None or x.dtype is None or not isinstance(width, int) or x.rank != 3:
            return "its stream is not [batch, tokens, channels] of known width"
        add = _Weights(
            Builder(graph, residual.node, residual.node.loc), f"block.{number}.shortcut",
            x.dtype.numpy,
        )  # fmt: skip
        b, total = add.b, y
        rng = np.random.default_rng((self.seed, number))
        for i in range(self.shortcuts):
            drawn = rng.standard_normal((width, self.rank)) / np.sqrt(width)
            hidden = b.op(linalg.matmul, x, add.weight(f"in{i}", drawn))
            hidden = b.op(activation.relu, hidden)
            zeros = add.weight(f"out{i}", np.zeros((self.rank, width)))
            total = b.op(arithmetic.add, total, b.op(linalg.matmul, hidden, zeros))
        for idx, value in enumerate(residual.node.inputs):
            if value is y:
                residual.node.set_operand(idx, total)
        return ""


@dataclass(frozen=True, slots=True)
class _Weights:
    """Adds weights of one place.

    Attributes:
        b: Builds before it.
        name: What their names begin with.
        numpy: Their element type.
    """

    b: Builder
    name: str
    numpy: Any

    def weight(self, name: str, array: Any) -> Value:
        """Adds a weight that training fits."""
        made = ArrayWeight(np.asarray(array, self.numpy))
        return self.b.weight(f"{self.name}.{name}", made, Role.PARAM)


def _attending(module: Module) -> list[Residual]:
    """Returns the sums that add what attention gives, in order."""
    return [
        residual
        for graph in graphs_of(module.graph)
        for chain in streams(graph)
        for residual in chain
        if any(node.op is attention.attention for node in residual.nodes)
    ]
