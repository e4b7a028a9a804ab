"""The passes `move-norm` and `fold-norm-gains`: where layers are normalized, and who scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg, norm, reshaping
from regraft.ir.types import TensorType
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.analysis.blocks import graphs_of
from regraft.passes.analysis.residual import Residual, streams
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.protocol import Context, Contract, Exact, Lossy, PassResult, Skip

_NORMS = (norm.layer_norm, norm.rms_norm)
_ANY_SIZE = 1 << 62


class _ByBlend:
    """The contract: exact where the new norms begin switched off."""

    def __get__(self, instance: MoveNorm | None, owner: type[Any]) -> Contract:
        is_identity = instance is not None and instance.start == "off"
        return Exact() if is_identity else Lossy("output")


def _by_blend() -> Any:
    return _ByBlend()  # seen as what it gives: a contract


@dataclass(frozen=True, slots=True)
class MoveNorm:
    """Normalizes what every layer adds to the residual stream, besides what it reads (Peri-LN).

    ## What it does
    Finds residual sums whose branch begins with a norm, and puts a norm of the same kind at the end
    of the branch: x + F(norm(x)) becomes x + norm(F(norm(x))). With `start=off`, the branch y
    becomes y + blend (norm(y) - y) with a learned `blend` that begins at 0.

    ## When it applies
    To layers that normalize what they read. Layers with the norm on the stream itself (post-norm)
    are reported.

    ## Example
    ```
    %y = add(%x, %branch)
    ```
    with `move-norm{start=on}` becomes
    ```
    %n = layer_norm(%branch, %one, %zero)
    %y = add(%x, %n)
    ```

    ## Exactness
    Exact with `start=off`; otherwise lossy, to be trained.

    ## References
    Kim et al., Peri-LN: Revisiting Layer Normalization in the Transformer Architecture, 2025.

    Args:
        start: `off` begins at the model as it is, `on` with the new norms alone.
    """

    name: ClassVar[str] = "move-norm"
    contract: ClassVar[Contract] = _by_blend()

    start: Literal["off", "on"] = "off"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Adds the norms."""
        raised = Fuse().run(module, ctx)
        skipped: list[Skip] = []
        number = 0
        for graph in graphs_of(module.graph):
            for residual in [each for chain in streams(graph) for each in chain]:
                reason = self._moved(residual, number)
                if reason:
                    skipped.append(Skip(str(residual.output.name), f"norm: {reason}"))
                number += not reason
        changed = raised.changed or number > 0
        return PassResult(changed, {"moved": number}, tuple(skipped))

    def _moved(self, residual: Residual, number: int) -> str:
        inner = [n for n in residual.nodes if n.op in _NORMS and n.inputs[0] is residual.skip]
        if not inner:
            return "its branch does not begin with a norm"
        y, graph = residual.branch, residual.node.graph
        width = None if y.shape is None else y.shape[-1]
        if not isinstance(width, int) or y.dtype is None or graph is None:
            return "the width of its branch is not known"
        if inner[0].attrs["axis"] not in (-1, (y.rank or 0) - 1):
            return "its norm is over other axes than the channels"
        b = Builder(graph, residual.node, residual.node.loc)
        numpy = y.dtype.numpy

        def weight(name: str, fill: float, size: int = width) -> Value:
            array = np.full(size, fill, numpy)
            return b.weight(f"layer.{number}.{name}", ArrayWeight(array), Role.PARAM)

        operands = [weight("norm_out.weight", 1)]
        if inner[0].op is norm.layer_norm:
            operands.append(weight("norm_out.bias", 0))
        made = b.op(inner[0].op, y, *operands, axis=-1, epsilon=inner[0].attrs["epsilon"])
        if self.start == "off":
            change = b.op(arithmetic.sub, made, y)
            scaled = b.op(arithmetic.mul, change, weight("norm_out.blend", 0))
            made = b.op(arithmetic.add, y, scaled)
        for idx, value in enumerate(residual.node.inputs):
            if value is y:
                residual.node.set_operand(idx, made)
        return ""


@dataclass(frozen=True, slots=True)
class FoldNormGains:
    """Folds gains and shifts of norms into the linear layers that read them.

    ## What it does
    norm(x) g + s, read by x W + b alone, becomes norm(x) read by x (g W) + (s W + b). The norm
    keeps a gain of ones, which kernels need, and loses its shift.

    ## When it applies
    To layer and RMS norms over the channels with constant gain and shift, all of whose readers are
    matrix products with a constant.

    ## Example
    ```
    %n = layer_norm(%x, %gain, %shift)
    %y = matmul(%n, %w)
    ```
    becomes
    ```
    %n = layer_norm(%x, %ones)
    %m = matmul(%n, %gw)
    %y = add(%m, %sw)
    ```

    ## Exactness
    Exact.

    ## References
    Ba et al., Layer Normalization, 2016.
    """

    name: ClassVar[str] = "fold-norm-gains"
    contract: ClassVar[Contract] = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Folds every norm it can."""
        skipped: list[Skip] = []
        folded = 0
        for node in list(_norms(module)):
            reason = _fold(node)
            folded += not reason
            if reason and reason != _PLAIN:
                skipped.append(Skip(str(node.outputs[0].name), f"norm: {reason}"))
        return PassResult(folded > 0, {"folded": folded}, tuple(skipped))


_PLAIN = "it has no gain and no shift"


def _norms(module: Module) -> Iterator[Node]:
    for graph in graphs_of(module.graph):
        yield from (node for node in graph if node.op in _NORMS)


def _fold(node: Node) -> str:
    """Folds one norm; returns why it cannot be, or ""."""
    out, graph = node.outputs[0], node.graph
    gain = node.inputs[1]
    shift = node.inputs[2] if len(node.inputs) > 2 else None
    if gain is None or gain.rank != 1 or graph is None or not is_constant(gain):
        return "its gain is not a constant vector"
    values = constant_of(gain, _ANY_SIZE)
    if shift is None and values is not None and np.all(values == 1):
        return _PLAIN
    if shift is not None and not is_constant(shift):
        return "its shift is not constant"
    readers = list(dict.fromkeys(out.users))
    if out.is_output or not readers or not all(_is_linear(r, out) for r in readers):
        return "something else than linear layers reads it"
    b = Builder(graph, node, node.loc)
    column = b.op(reshaping.unsqueeze, gain, axes=(1,))
    for reader in readers:
        weight = reader.inputs[1]
        if weight is None:
            raise AssertionError("a product has two operands")
        at = Builder(graph, reader, reader.loc)
        if shift is not None:
            moved = at.op(linalg.matmul, shift, weight)
            result = reader.outputs[0]
            users = list(result.uses)
            after = Builder(graph, reader.next, reader.loc)
            total = after.op(arithmetic.add, result, moved)
            is_output = result.is_output
            for user, idx in users:
                if isinstance(user, Node):
                    user.set_operand(idx, total)
            if is_output:
                names = graph.output_names
                values_ = [total if v is result else v for v in graph.outputs]
                graph.set_outputs(list(zip(names, values_, strict=True)))
        reader.set_operand(1, at.op(arithmetic.mul, column, weight))
    size = (gain.shape or ())[0]
    ones = b.constant(np.ones(int(str(size))), gain.dtype)
    node.set_operand(1, ones)
    if shift is not None:
        node.set_operand(2, None)
    return ""


def _is_linear(reader: Node, x: Value) -> bool:
    if reader.op is not linalg.matmul or reader.inputs[0] is not x:
        return False
    weight = reader.inputs[1]
    return (
        weight is not None
        and weight is not x
        and is_constant(weight)
        and isinstance(weight.type, TensorType)
        and weight.rank == 2
    )
