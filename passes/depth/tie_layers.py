"""The pass `tie-layers`: layers share weights, each with what it adds of its own at low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.ir.spill import stored
from regraft.ir.weights import Role
from regraft.passes.analysis.layers import Layer, repeated_layers
from regraft.passes.calibration.products import ConstantProduct
from regraft.passes.calibration.tied import Matrices, matrices_of
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.factorize.blocks import Blocks, block_spectrum
from regraft.passes.factorize.emit import add_factors, product_by_factors, refusal
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult, Skip

Array = np.ndarray[Any, Any]

_WHO = "pass `tie-layers`"


@dataclass(frozen=True, slots=True)
class TieLayers:
    """Lets layers share their matrices: a block of layers that is run several times.

    ## What it does
    Of a stack of L equal layers, layer l takes the matrices of layer l mod `block` of a shared
    block, and adds a product of rank `rank` of its own, `x W + (x A) B`, where `A B` is the
    truncated singular value decomposition of what its matrix was beyond the shared one. Gains and
    biases stay its own. The shared block starts as the mean of the layers that share it
    (`average`), as the first layers (`lower`), or as layers picked at even steps (`stepwise`).

    ## When it applies
    To stacks of equal layers whose number is a multiple of `block`; to matrices that one layer
    alone reads, in matrix products and `gemm`.

    ## Example
    ```
    %h1 = add(%h0, matmul(%h0, %w0))
    %h2 = add(%h1, matmul(%h1, %w1))
    ```
    with `tie-layers{block=1,rank=2}` becomes
    ```
    %p0 = add(matmul(%h0, %shared), matmul(matmul(%h0, %w0.left), %w0.right))
    %h1 = add(%h0, %p0)
    %p1 = add(matmul(%h1, %shared), matmul(matmul(%h1, %w1.left), %w1.right))
    %h2 = add(%h1, %p1)
    ```

    ## Exactness
    Lossy; at full rank exact but for rounding. The pass `recover` regains a part.

    ## References
    Bae et al., Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA,
    2024.

    Args:
        block: Layers of the shared block.
        rank: Of what each layer adds; 0 for nothing.
        init: What the shared block starts as.
    """

    name: ClassVar[str] = "tie-layers"
    contract: ClassVar[Contract] = Lossy("output")

    block: int = 1
    rank: int = 8
    init: Literal["average", "lower", "stepwise"] = "average"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Ties the matrices of every stack.

        Raises:
            UsageError: For a module without stacks of so many layers.
        """
        if self.block < 1 or self.rank < 0:
            raise UsageError(f"{_WHO}: `block` is at least 1, `rank` at least 0")
        groups = repeated_layers(module.graph)
        stacks = [g.layers for g in groups if len(g.layers) % self.block == 0]
        stacks = [layers for layers in stacks if len(layers) > self.block]
        if not stacks:
            counts = ", ".join(str(len(group.layers)) for group in groups) or "none"
            raise UsageError(
                f"{_WHO}, option `block`: no stack has a multiple of {self.block} layers",
                hint=f"layers that repeat: {counts}",
            )
        items, skipped = matrices_of(module)
        report: list[LayerError] = []
        before = after = 0
        for layers in stacks:
            for every in self._members(layers, items, skipped):
                before += sum(item.size for item in every)
                shared = self._shared([item.stack() for item in every])
                for start, stack in enumerate(shared):
                    members = every[start :: self.block]
                    after += self._tie(module, members, stack, report, ctx.work_dir)
        drop_dead_code(module)
        report.sort(key=lambda each: (-each.error, each.name))
        stats: dict[str, int | float] = {
            "stacks": len(stacks), "matrices": len(report), "numbers-before": before,
            "numbers": after,
        }  # fmt: skip
        if report:
            stats["worst-error"] = report[0].error
        return PassResult(bool(report), stats, tuple(skipped), layers=tuple(report))

    def _members(
        self, layers: Sequence[Layer], items: Sequence[Matrices], skipped: list[Skip]
    ) -> list[list[Matrices]]:
        """Returns the matrices at each place of a layer, in the order of layers."""
        by_value = {each.weight: item for item in items for each in item.products}
        inside = [set(layer.nodes) for layer in layers]
        found: list[list[Matrices]] = []
        for place in range(len(layers[0].constants)):
            values = [layer.constants[place] for layer in layers]
            members = [by_value.get(value) for value in values]
            own = [
                item
                for item, nodes in zip(members, inside, strict=True)
                if item is not None and all(each.node in nodes for each in item.products)
            ]
            if len(own) < len(layers) or len(set(values)) < len(layers):
                continue
            reasons = [_refusal(each) for item in own for each in item.products]
            reason = next((each for each in reasons if each), None)
            if reason is not None:
                skipped.append(Skip(own[0].name, reason))
                continue
            found.append(own)
        return found

    def _tie(
        self,
        module: Module,
        members: list[Matrices],
        shared: Array,
        report: list[LayerError],
        folder: Path | None,
    ) -> int:
        """Ties matrices; returns how many numbers they take then."""
        first = members[0].products[0]
        b = Builder(module.graph, first.node, first.node.loc)
        dtype = first.weight.dtype
        assert dtype is not None, "a constant has a type"
        array = np.ascontiguousarray(first.layout.unstack(shared).astype(dtype.numpy))
        common = b.weight(f"{members[0].name}.shared", stored(array, folder), Role.PARAM)
        total = shared.size
        for item in members:
            stack = item.stack()
            spectrum = block_spectrum((stack - shared)[0], (1, 1))
            rank = min(self.rank, spectrum.s.shape[2])
            scale = float(np.square(stack.astype(np.float64)).sum()) ** 0.5 or 1.0
            report.append(
                LayerError(
                    item.name, f"shared + rank {rank}", spectrum.lost(rank) / scale, False,
                    4 * spectrum.num_weights(rank), 4 * item.size,
                )
            )  # fmt: skip
            total += spectrum.num_weights(rank)
            _write(module, item, common, spectrum.cut(rank) if rank else None)
        return total

    def _shared(self, stacks: Sequence[Array]) -> list[Array]:
        """Returns what each layer of the shared block starts as."""
        match self.init:
            case "average":
                return [_mean(stacks[start :: self.block]) for start in range(self.block)]
            case "lower":
                return list(stacks[: self.block])
            case "stepwise":
                # the first and the last layer are among those picked
                last = len(stacks) - 1
                places = np.rint(np.linspace(0, last, self.block)).astype(int)
                return [stacks[place] for place in places]


def _mean(stacks: Sequence[Array]) -> Array:
    mean: Array = np.stack(stacks).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def _refusal(product: ConstantProduct) -> str | None:
    if product.node.op.name == "conv":
        return "`conv` is not tied"
    return refusal(product, is_plain=True)


def _write(module: Module, item: Matrices, common: Value, own: Blocks | None) -> None:
    """Replaces the products by a matrix by those by the shared one and by its own factors."""
    values = [] if own is None else add_factors(module, item.products[0], item.name, own)
    for product in item.products:
        b = Builder(module.graph, product.node, product.node.loc)
        result = _shared_product(b, product, common)
        if own is not None:
            part = product_by_factors(b, product, own, values)
            result = b.op(arithmetic.add, result, part)
        module.graph.replace(product.node, [result])


def _shared_product(b: Builder, product: ConstantProduct, common: Value) -> Value:
    """Returns the product by the shared constant; the bias of a `gemm` stays its own."""
    node = product.node
    operands: list[Value | None] = list(node.inputs)
    operands[product.weight_idx] = common
    return b.op(node.op, *operands, **node.attrs)
