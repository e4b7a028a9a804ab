"""The pass `rotate`: residual streams and values of attention in another orthogonal basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant, literal, weight
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import (
    arithmetic,
    attention,
    cast,
    conv,
    einsum,
    gathering,
    linalg,
    norm,
    repeating,
    reshaping,
    slicing,
)
from regraft.ir.spill import stored
from regraft.passes.analysis.coupling import Coupling, Group
from regraft.passes.analysis.coupling.builder import name_of
from regraft.passes.analysis.coupling.groups import touched
from regraft.passes.analysis.coupling.spaces import Space, factors_of, find
from regraft.passes.equivalence.scaling import Refused, apply_plan, plan_factor
from regraft.passes.equivalence.shifting import apply_shift, plan_shift
from regraft.passes.protocol import Context, Contract, Exact, PassResult, Skip

Array = np.ndarray[Any, Any]

_NORMS = frozenset({norm.layer_norm, norm.rms_norm})
_LINEAR = frozenset(
    {linalg.matmul, linalg.gemm, conv.conv, einsum.einsum, attention.attention, arithmetic.add,
     arithmetic.sub, gathering.gather, cast.identity, cast.cast, reshaping.reshape,
     reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze, repeating.expand, slicing.concat,
     slicing.slice_, slicing.split}
)  # fmt: skip
"""Operators that map a basis of the channels to the same basis, or sum over it."""

_ANY_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Rotate:
    """Turns rows of channels into an orthogonal basis in which no channel stands out.

    ## What it does
    Multiplies every weight that writes a row of channels by a random orthogonal matrix, and every
    weight that reads it by its inverse, so that outliers of single channels spread over all. Gains
    and biases of the norms between go into the layers that read them first. Layer norms subtract
    the mean: the matrix then keeps the direction of equal channels. Nothing is left to do at run
    time.

    ## When it applies
    To the residual stream of models that normalize before a layer, with linear layers, tables and
    sums on it; to the values of attention, one matrix for all heads. Where a norm stands on the
    stream itself, where weights are tied so that a gain cannot move, and where the row is an
    output, it is left alone, with the reason.

    ## Example
    ```
    %h = add(%x, matmul(%v, %o))
    %y = matmul(rms_norm(%h, 1), %w)
    ```
    becomes the same with `%o R`, `R^T %w`, and the table behind `%x` multiplied by `R`.

    ## Exactness
    Exact.

    ## References
    Ashkboos et al., QuaRot, 2024 (R1 and R2, offline).

    Args:
        rows: Which rows of channels: `stream`, `values` of attention, or `both`.
        seed: Of the random matrices.
    """

    name: ClassVar[str] = "rotate"
    contract: ClassVar[Contract] = Exact()

    rows: Literal["stream", "values", "both"] = "both"
    seed: int = 0

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Folds the norms of every row that can be turned, and turns it."""
        rng = np.random.default_rng([self.seed, ctx.seed])
        skipped = _pinned_streams(Coupling(module))
        rows = weights = 0
        done: set[str] = set()
        while True:
            coupling = Coupling(module)
            group = next((g for g in self._wanted(coupling) if _key(coupling, g) not in done), None)
            if group is None:
                break
            key = _key(coupling, group)
            done.add(key)
            before = module.clone()
            found: Group | None = None
            refused = _fold_norms(module, coupling, group)
            if refused is None:
                coupling = Coupling(module)
                found = next((g for g in coupling.groups if _key(coupling, g) == key), None)
                refused = (
                    Refused(group.name, "its weights are no longer coupled")
                    if found is None
                    else _hindrance(coupling, found)
                )
            if refused is not None or found is None:
                module.restore(before)
                if refused is not None:
                    skipped.append(Skip(refused.node, refused.reason))
                continue
            keeps_mean = any(node.op is norm.layer_norm for node in _nodes(coupling, found))
            weights += _turn(coupling, found, rotation(rng, found.size, keeps_mean=keeps_mean))
            rows += 1
        return PassResult(bool(rows), {"rows": rows, "weights": weights}, tuple(skipped))

    def _wanted(self, coupling: Coupling) -> list[Group]:
        """Returns the groups that norms count (streams), and those of attention's values."""
        found: list[Group] = []
        for group in coupling.groups:
            nodes = _nodes(coupling, group)
            is_stream = any(
                node.op in _NORMS and _holds(coupling, node.inputs[0], group) for node in nodes
            )
            is_value = any(
                node.op is attention.attention and _holds(coupling, node.inputs[2], group)
                and not _holds(coupling, node.inputs[0], group)
                for node in nodes
            )  # fmt: skip
            heads = is_value and any(
                node.op is attention.attention
                and find(coupling.axes(node.outputs[0])[-1]) is find(group.space)
                for node in nodes
            )
            if (is_stream and self.rows != "values") or (heads and self.rows != "stream"):
                found.append(group)
        return found


def _pinned_streams(coupling: Coupling) -> list[Skip]:
    """Returns why rows that norms count can have no other basis at all."""
    found: dict[Space, Skip] = {}
    pinned = {each.space: each for each in coupling.pinned}
    for node in coupling.module.graph:
        axes = coupling.axes(node.inputs[0]) if node.op in _NORMS and node.inputs[0] else ()
        space = find(axes[-1]) if axes else None
        if space in pinned and space is not None:
            found.setdefault(space, Skip(name_of(node), str(pinned[space].why)))
    return list(found.values())


def rotation(rng: np.random.Generator, size: int, *, keeps_mean: bool) -> Array:
    """Returns a random orthogonal matrix f64[size, size].

    Args:
        rng: Draws it.
        size: Channels.
        keeps_mean: Whether the direction of equal channels stays where it is.
    """
    first = np.full((size, 1), size**-0.5)
    if not keeps_mean:
        return _orthogonal(rng.normal(size=(size, size)))
    # the rest of a basis that begins with equal channels, turned within itself
    basis = np.linalg.qr(np.concatenate([first, rng.normal(size=(size, size - 1))], 1))[0]
    rest = basis[:, 1:]
    turned = rest @ _orthogonal(rng.normal(size=(size - 1, size - 1)))
    return np.asarray(first @ first.T + turned @ rest.T)


def _orthogonal(matrix: Array) -> Array:
    q, r = np.linalg.qr(matrix)
    return np.asarray(q * np.sign(np.einsum("kk->k", r)))


def _key(coupling: Coupling, group: Group) -> str:
    """Names a group by its matrices, which folding norms keeps."""
    matrices = sorted(
        f"{name}:{axis}" for name, axis in group.weights if len(coupling.builder.weights[name]) > 1
    )
    return " ".join(matrices)


def _holds(coupling: Coupling, value: Value | None, group: Group) -> bool:
    return value is not None and any(
        touched(space, {group.space: 0}) for space in coupling.axes(value)
    )


def _nodes(coupling: Coupling, group: Group) -> list[Node]:
    """Returns every node that makes or reads a value of the group, in order of first meeting."""
    found: dict[Node, None] = {}
    for value, _ in group.values:
        if value.producer is not None:
            found.setdefault(value.producer)
        found.update(dict.fromkeys(value.users))
    return list(found)


def _fold_norms(module: Module, coupling: Coupling, group: Group) -> Refused | None:
    """Moves gains and biases of the norms on a row into what reads them."""
    norms = [
        node
        for node in _nodes(coupling, group)
        if node.op in _NORMS and _holds(coupling, node.inputs[0], group)
    ]
    for node in norms:
        value = node.outputs[0]
        bias = constant_of(node.inputs[2], _ANY_SIZE) if len(node.inputs) > 2 else None
        if bias is not None and bias.any():
            shift = plan_shift(Coupling(module), value)
            if isinstance(shift, Refused):
                return shift
            apply_shift(shift, -bias.astype(np.float64))
        gain = constant_of(node.inputs[1], _ANY_SIZE)
        if gain is None or (gain == 0).any():
            return Refused(name_of(node), "its gain is no constant, or 0 somewhere")
        if (gain != 1).any():
            now = Coupling(module)
            factor = 1 / gain.astype(np.float64)
            plans = plan_factor(now, value, (value.rank or 1) - 1, factor)
            if isinstance(plans, Refused):
                return plans
            for plan in plans:
                apply_plan(now, plan)
    return None


def _hindrance(coupling: Coupling, group: Group) -> Refused | None:
    """Returns what stands on a row that is no linear map of it."""
    for node in _nodes(coupling, group):
        name = name_of(node)
        if node.op is weight or node.op is literal:
            continue
        if node.op in _NORMS:
            affine = [constant_of(each, _ANY_SIZE) for each in node.inputs[1:3] if each is not None]
            plain = affine[0] is not None and np.allclose(affine[0], 1, rtol=1e-6, atol=0)
            if not plain or (len(affine) > 1 and (affine[1] is None or affine[1].any())):
                return Refused(name, f"{node.op.name} stands on the stream: its gain cannot move")
            continue
        if node.op not in _LINEAR:
            return Refused(name, f"{node.op.name} is no linear map of the channels")
        if node.op is conv.conv and node.attrs["groups"] != 1:
            return Refused(name, "conv keeps channels apart in groups")
    for value, axis in group.values:
        if not _innermost(coupling.axes(value)[axis], group.space):
            return Refused(value.name or "", "its channels are cut into parts")
    return None


def _innermost(space: Space, leaf: Space) -> bool:
    factors = factors_of(space)
    return sum(each is leaf for each in factors) == 1


def _turn(coupling: Coupling, group: Group, matrix: Array) -> int:
    """Multiplies every constant of a row by the matrix, along the axes of the row."""
    module, sizes = coupling.module, {group.space: 0}
    affine = {  # gains of 1 and biases of 0
        module.weights.resolve(value.producer.attrs["name"])
        for value in coupling.builder.axes
        if value.producer is not None and value.producer.op is weight and _only_norms(value)
    }
    count = 0
    for name, spaces in coupling.builder.weights.items():
        axes = [axis for axis, space in enumerate(spaces) if touched(space, sizes)]
        if not axes or (len(spaces) == 1 and name in affine):
            continue
        array = module.weights[name].numpy().astype(np.float64)
        turned = _along(array, [spaces[axis] for axis in axes], axes, group.space, matrix)
        turned = turned.astype(module.weights[name].dtype.numpy)
        module.weights.set(name, stored(turned, None, (name,)))
        count += 1
    for value, spaces in list(coupling.builder.axes.items()):
        maker = value.producer
        if maker is None or maker.op is weight or not is_constant(value) or maker.graph is None:
            continue
        axes = [axis for axis, space in enumerate(spaces) if touched(space, sizes)]
        if axes:
            array = np.asarray(maker.attrs["value"])
            if (array == array.reshape(-1)[0]).all() and _only_norms(value):
                continue  # gains of 1 and biases of 0
            turned = _along(
                array.astype(np.float64), [spaces[axis] for axis in axes], axes, group.space, matrix
            )
            b = Builder(maker.graph, maker, maker.loc)
            value.replace_all_uses_with(b.constant(turned.astype(array.dtype)))
    return count


def _only_norms(value: Value) -> bool:
    return all(user.op in _NORMS for user in value.users)


def _along(
    array: Array, spaces: Sequence[Space], axes: Sequence[int], leaf: Space, matrix: Array
) -> Array:
    """Returns an array with the leaf's positions on some axes in the new basis."""
    for axis, space in zip(axes, spaces, strict=True):
        factors = factors_of(space)
        place = next(idx for idx, each in enumerate(factors) if each is leaf)
        split = tuple(int(str(each.size)) for each in factors)
        parts = array.reshape(*array.shape[:axis], *split, *array.shape[axis + 1 :])
        moved = np.moveaxis(np.moveaxis(parts, axis + place, -1) @ matrix, -1, axis + place)
        array = moved.reshape(array.shape)
    return array
