"""The pass `fuse-layers`: a layer goes, and its weights are learned into its neighbours'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, linalg
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.analysis.layers import Layer
from regraft.passes.analysis.position_mask import mask_of
from regraft.passes.calibration.tied import Matrices, matrices_of
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.depth.influence import RemovalLoss, removal_units
from regraft.passes.depth.stack import (
    bypass,
    check_numbers,
    check_removable,
    judged_on,
    layers_of,
    removable,
)
from regraft.passes.protocol import Context, Contract, Lossy, PassResult
from regraft.passes.recovery.fixed import FixedBatches
from regraft.passes.recovery.objective import NormalizedMse, Term
from regraft.passes.recovery.task import Schedule, Task

Array = np.ndarray[Any, Any]

_WHO = "pass `fuse-layers`"


@dataclass(frozen=True, slots=True, eq=False)
class _Graft:
    """What one matrix learns from that of the layer that goes.

    Args:
        item: The matrix.
        donor: f[shape], of the layer that goes.
        names: Of the factors B, A, P and Q in the module.
        value: What the products read meanwhile.
    """

    item: Matrices
    donor: Array
    names: tuple[str, str, str, str]
    value: Value


@dataclass(frozen=True, slots=True)
class FuseLayers:
    """Removes layers, and learns what they knew into the matrices of their neighbours.

    ## What it does
    Removes the layer without which the last hidden state stays most alike, as `drop-layers` does,
    and lets the matrices `W` of up to `group` layers on either side become
    `W + B A + (P Q) * W_removed`, with products of rank `rank`. `B` and `P` start at zero, so that
    it starts as plain removal. The four are trained on what the group's last layer gave before,
    and folded into `W`. Then the next layer goes, until `count` did.

    ## When it applies
    To layers that `drop-layers` can remove, with samples and PyTorch (without `steps`, to any).

    ## Example
    ```
    %h1 = layer0(%h0)
    %h2 = layer1(%h1)
    %h3 = layer2(%h2)
    ```
    with `fuse-layers{layers=[1]}` becomes
    ```
    %h1 = layer0'(%h0)
    %h3 = layer2'(%h1)
    ```

    ## Exactness
    Lossy.

    ## References
    Pei et al., FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers, 2024.

    Args:
        layers: Numbers of the layers to fuse into others, from 0.
        count: How many, in place of their numbers.
        group: Neighbours on either side that learn.
        rank: Of the products.
        steps: Updates for each layer that goes.
        rate: The highest learning rate.
        mask: Input that is nonzero where positions count, where the module has it.
    """

    name: ClassVar[str] = "fuse-layers"
    contract: ClassVar[Contract] = Lossy("output")

    layers: tuple[int, ...] = ()
    count: int = 0
    group: int = 1
    rank: int = 8
    steps: int = 200
    rate: float = 1e-3
    mask: str = "attention_mask"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Fuses layer after layer.

        Raises:
            UsageError: For numbers that no layer has, or without what training needs.
            UnsupportedError: When a layer hands more than the stream to the rest of the model.
        """
        if bool(self.layers) == bool(self.count):
            raise UsageError(
                f"{_WHO}: give either `layers` or a `count`",
                hint="`fuse-layers{count=1}` takes the layer that is missed least",
            )
        if self.steps and (ctx.trainer is None or not (ctx.training or ctx.samples)):
            raise UsageError(
                f"{_WHO} trains: it needs PyTorch, and `--train` or `--calibrate`",
                hint="install it: `pip install 'regraft[torch]'`, or use steps=0",
            )
        found = layers_of(module)
        total = len(found)
        given = ctx.replay.get(self.name, {}).get("layers") or self.layers
        if given:
            check_numbers(_WHO, given, found)
            for number in given:
                check_removable(_WHO, found[number], number)
        order = sorted(given, reverse=True)
        left = list(range(total))  # numbers, as they were, of the layers that are left
        gone: list[int] = []
        stats: dict[str, int | float] = {"layers-before": total}
        for place in range(len(order) or self.count):
            number = left.index(order[place]) if order else self._least(module, ctx)
            losses = self._fuse(module, number, ctx)
            gone.append(left.pop(number))
            if losses:
                stats |= {f"loss-first-{gone[-1]}": losses[0], f"loss-last-{gone[-1]}": losses[1]}
        drop_dead_code(module)
        stats["layers"] = total - len(gone)
        return PassResult(True, stats, decisions={"layers": gone})

    def _least(self, module: Module, ctx: Context) -> int:
        """Returns the number of the layer without which the outputs stay most alike.

        Source: Pei et al., FuseGPT, 2024, eq. 1 (macro influence), on outputs for hidden states.
        """
        source, samples = judged_on(ctx, f"{_WHO}, option `count`", "name the `layers`")
        can_go = removable(layers_of(module))
        if not can_go:
            raise UsageError(f"{_WHO}, option `count`: no layer is left that can be removed")
        loss = RemovalLoss(module, source, samples)
        units = removal_units(loss, list(can_go))
        return int(min(units, key=lambda unit: (float(unit.losses[0]), int(unit.name))).name)

    def _fuse(self, module: Module, number: int, ctx: Context) -> tuple[float, float] | None:
        """Removes a layer and trains its neighbours; returns the first and the last loss."""
        teacher = module.clone()
        layers = layers_of(module)
        if not self.steps:
            bypass(layers, [number])
            return None
        grafts = grafted(module, layers, number, self.group, self.rank, ctx.seed)
        near = [n for n in _near(layers, number, self.group) if n != number]
        last = max(near, default=number)
        own = layers[last].output if last > number else layers[number].input
        theirs = layers_of(teacher)[max(last, number)].output
        bypass(layers, [number])
        mask = mask_of(module, own, self.mask)
        trained = tuple(name for each in grafts for name in each.names)
        term = Term(NormalizedMse(), own, (theirs,), mask=mask)
        schedule = Schedule(self.steps, self.rate, self.steps // 20, seed=ctx.seed)
        assert ctx.trainer is not None, "asked before"
        data = ctx.training or FixedBatches(ctx.samples, ctx.seed)
        report = ctx.trainer.distill(module, [teacher], Task((term,), schedule, trained), data)
        folded(module, grafts)
        tail = report.losses[-max(1, len(report.losses) // 20) :]
        return report.losses[0], sum(tail) / len(tail)


def _near(layers: Sequence[Layer], number: int, group: int) -> range:
    """Returns the numbers of a layer and its neighbours in its own stack."""
    shape = [node.op for node in layers[number].nodes]
    first = last = number
    while first > 0 and number - first < group and _is_like(layers[first - 1], shape):
        first -= 1
    while last + 1 < len(layers) and last - number < group and _is_like(layers[last + 1], shape):
        last += 1
    return range(first, last + 1)


def _is_like(layer: Layer, shape: list[Any]) -> bool:
    return [node.op for node in layer.nodes] == shape


def grafted(
    module: Module, layers: Sequence[Layer], number: int, group: int, rank: int, seed: int
) -> list[_Graft]:
    """Lets the neighbours of a layer read `W + B A + (P Q) * W_removed`, in place.

    Args:
        module: The module.
        layers: All its layers.
        number: The layer that goes.
        group: Neighbours on either side.
        rank: Of the products.
        seed: Of `A` and `Q`.
    """
    items, _ = matrices_of(module)
    by_value = {each.weight: item for item in items for each in item.products}
    rng = np.random.default_rng(seed)
    grafts = []
    for near in _near(layers, number, group):
        if near == number:
            continue
        for own, donor in zip(layers[near].constants, layers[number].constants, strict=True):
            item = by_value.get(own)
            if item is None or own is donor or own.rank != 2 or own.shape != donor.shape:
                continue
            if donor in by_value:
                grafts.append(_graft(module, item, own, donor, rank, rng))
    if not grafts:
        raise UsageError(
            f"{_WHO}: no neighbour of layer {number} has matrices of its own",
            hint="use `drop-layers`, and `recover`",
        )
    return grafts


def _graft(
    module: Module, item: Matrices, own: Value, donor: Value, rank: int, rng: np.random.Generator
) -> _Graft:
    rows, columns = (size for size in own.shape or () if isinstance(size, int))
    r = min(rank, rows, columns)
    product = item.products[0]
    b = Builder(module.graph, product.node, product.node.loc)
    made = donor.producer
    assert made is not None, "a constant is made by a node"
    content = np.array(module.weights[made.attrs["name"]].numpy())
    scale = 1 / np.sqrt(columns)

    def factor(which: str, *shape: int, is_zero: bool) -> Value:
        array = np.zeros(shape) if is_zero else rng.standard_normal(shape) * scale
        return b.weight(f"{item.name}.{which}", ArrayWeight(array.astype(np.float32)), Role.PARAM)

    left = factor("B", rows, r, is_zero=True), factor("P", rows, r, is_zero=True)
    right = factor("A", r, columns, is_zero=False), factor("Q", r, columns, is_zero=False)
    given = b.weight(f"{item.name}.removed", ArrayWeight(content.astype(np.float32)))
    moved = b.op(linalg.matmul, left[0], right[0])
    taken = b.op(arithmetic.mul, b.op(linalg.matmul, left[1], right[1]), given)
    value = b.op(arithmetic.add, b.op(arithmetic.add, own, moved), taken)
    for each in item.products:
        each.node.set_operand(each.weight_idx, value)
    names = tuple(str(v.name) for v in (left[0], right[0], left[1], right[1]))
    return _Graft(item, content, (names[0], names[1], names[2], names[3]), value)


def folded(module: Module, grafts: Sequence[_Graft]) -> None:
    """Makes what neighbours learned part of their matrices, in place."""
    for graft in grafts:
        b, a, p, q = (module.weights[name].numpy().astype(np.float64) for name in graft.names)
        own = graft.value.producer
        assert own is not None, "a sum"
        inner = own.inputs[0]
        assert inner is not None, "a sum"
        assert inner.producer is not None, "a sum"
        weight = inner.producer.inputs[0]
        assert weight is not None, "a sum"
        for each in graft.item.products:
            each.node.set_operand(each.weight_idx, weight)
        before = module.weights[graft.item.name].numpy().astype(np.float64)
        graft.item.overwrite_array(module.weights, before + b @ a + (p @ q) * graft.donor)
    drop_dead_code(module)
