"""Attacks axis rules: drops positions of every label and compares with what the rule promises.

A pass label promises `eval(drop(operands)) == drop(eval(operands))`, a sum label promises
`eval(drop(operands)) == eval(operands with those positions zeroed)`. The checker knows nothing of
operators: it needs a node's rule, its shapes and its `eval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.ir.axes import Axis, AxisRule, Role
from regraft.ir.axis_binding import BoundRule, bind_node, resized_attrs, rule_of
from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import evaluate_node
from regraft.ir.graph import Graph, Node
from regraft.ir.opspec import OpSpec, Trait
from regraft.ir.types import DType, TensorType, dtype_of

Array = np.ndarray[Any, Any]
Draw = Callable[[np.random.Generator, str, np.dtype[Any]], Array]

KINDS = ("positive", "negative", "mixed")
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Sample:
    """Operands (how to draw each, or None) and attributes of one node.

    Attributes:
        operands: One per slot.
        attrs: Attributes.
        num_outputs: Number of results, None for all that are always there.
    """

    operands: tuple[Draw | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    num_outputs: int | None = None


def floats(*shape: int) -> Draw:
    """Draws floats of the attacked element type, of the attacked sign."""

    def draw(rng: np.random.Generator, kind: str, dtype: np.dtype[Any]) -> Array:
        if kind == "mixed":
            return rng.standard_normal(shape).astype(dtype)
        array = rng.uniform(0.1, 2.0, shape).astype(dtype)
        return -array if kind == "negative" else array

    return draw


def ints(*shape: int, low: int = 0, high: int = 8, dtype: DType = DType.I64) -> Draw:
    """Draws integers in [low, high)."""

    def draw(rng: np.random.Generator, kind: str, _: np.dtype[Any]) -> Array:
        return rng.integers(low, high, shape).astype(dtype.numpy)

    return draw


def bools(*shape: int) -> Draw:
    """Draws booleans, both values."""
    return ints(*shape, high=2, dtype=DType.BOOL)


def fixed(array: Any) -> Draw:
    """Gives the same array at every draw; float arrays take the attacked element type."""
    array = np.asarray(array)

    def draw(_: np.random.Generator, kind: str, dtype: np.dtype[Any]) -> Array:
        typed: Array = array.astype(dtype) if array.dtype == np.float64 else array
        return typed

    return draw


@dataclass
class Report:
    """What an attack found.

    Attributes:
        broken: One sentence per broken promise.
        claimed: Pass and sum labels of the rules.
        tested: Those of which positions were dropped.
        informative: Whether some result had two different finite elements.
    """

    broken: list[str] = field(default_factory=list)
    claimed: set[str] = field(default_factory=set)
    tested: set[str] = field(default_factory=set)
    informative: bool = False


def attack(
    spec: OpSpec, sample: Sample, rule: Callable[[AxisRule], AxisRule] | None = None
) -> Report:
    """Attacks a spec's rule on one sample, on data of every sign and both float types.

    Args:
        spec: The operator.
        sample: One node of it.
        rule: Falsifies the spec's rule, to test the attack itself.
    """
    report = Report()
    for kind in KINDS:
        for dtype in FLOATS:
            rng = np.random.default_rng(0)
            operands = [None if d is None else d(rng, kind, dtype) for d in sample.operands]
            if not spec.is_variadic:  # trailing absent operands need not be written
                operands += [None] * (len(spec.operands) - len(operands))
            node = make_node(spec, operands, sample.attrs, sample.num_outputs)
            stated = rule_of(node)
            if stated is None:
                report.broken.append(f"{spec.name}: no rule for this sample")
                return report
            stated = stated if rule is None else rule(stated)
            _attack(node, stated, operands, f"{kind} {dtype}", report)
    return report


def make_node(
    spec: OpSpec,
    operands: Sequence[Array | None],
    attrs: Mapping[str, Any],
    num_outputs: int | None = None,
) -> Node:
    """Returns a node of a graph whose inputs have the arrays' types."""
    graph = Graph()
    inputs = [
        None if a is None else graph.add_input(f"x{i}", TensorType(dtype_of(a), a.shape))
        for i, a in enumerate(operands)
    ]
    return graph.create(spec, inputs, attrs, num_outputs=num_outputs)


def _attack(
    node: Node, rule: AxisRule, operands: list[Array | None], what: str, report: Report
) -> None:
    name = f"{node.op.name} {dict(node.attrs)}"
    bound = bind_node(node, rule, with_results=True)
    base = evaluate_node(node, operands, {})[: len(node.outputs)]
    report.informative |= any(_informative(result) for result in base)
    roles = {factor.name: factor.role for axis in _axes(bound) for factor in axis}
    for label in roles:
        if label not in bound.sizes:
            report.broken.append(f"{name}: nothing tells the size of label `{label}`")
            return
        if len({f.free for axis in _axes(bound) for f in axis if f.name == label}) > 1:
            report.broken.append(f"{name}: label `{label}` is free here and tied there")
            return
        first = bound.results[0] or ()
        if roles[label] is Role.SUM and any(f.name == label for axis in first for f in axis):
            report.broken.append(f"{name}: label `{label}` is summed, yet in the first result")
            return
    for label, role in roles.items():
        if role is Role.FIXED:
            continue
        report.claimed.add(label)
        size = bound.sizes[label]
        if not isinstance(size, int):
            report.broken.append(f"{name}: only run time knows the size `{size}` of `{label}`")
            continue
        if size < 2:
            continue
        for keep in _subsets(label, bound):
            problem = _drop(node, bound, operands, base, label, role, keep)
            report.tested.add(label)
            if problem:
                report.broken.append(
                    f"{name}: {role.value} label `{label}`, "
                    f"keeping {keep.tolist()}, {what}: {problem}"
                )


def _axes(bound: BoundRule) -> Iterator[Axis]:
    for term in (*bound.operands, *bound.results):
        yield from term or ()


def _subsets(label: str, bound: BoundRule) -> Iterator[Array]:
    """Yields the kept positions: one row for every block that may choose its own, else one row."""
    size = int(str(bound.sizes[label]))
    dropped = {(0,), (size - 1,), (size // 2,), tuple(range(0, size - 1, 2))}
    rows = [sorted(set(range(size)) - set(drop)) for drop in sorted(dropped)]
    for row in rows:
        if row:
            yield np.array([row])
    blocks = _blocks(label, bound)
    for num_dropped in {1, size // 2} if blocks > 1 else ():
        yield np.array(
            [
                sorted(set(range(size)) - {(block + i) % size for i in range(num_dropped)})
                for block in range(blocks)
            ]
        )


def _blocks(label: str, bound: BoundRule) -> int:
    """Returns over how many blocks the positions of a label are free."""
    outer = [
        axis[: axis.index(factor)]
        for axis in _axes(bound)
        for factor in axis
        if factor.name == label and factor.free
    ]
    sizes = [int(str(bound.sizes[factor.name])) for factor in outer[0]] if outer else []
    return math.prod(sizes)


def _drop(
    node: Node,
    bound: BoundRule,
    operands: Sequence[Array | None],
    base: Sequence[Array],
    label: str,
    role: Role,
    keep: Array,
) -> str:
    """Drops positions and returns what is wrong, "" when the promise is kept."""
    sizes = {**bound.sizes, label: keep.shape[1]}
    terms = (*bound.operands, *([None] * len(operands)))
    small = [
        array if array is None or term is None else _take(array, term, bound, label, keep)
        for array, term in zip(operands, terms, strict=False)
    ]
    try:
        other = make_node(node.op, small, resized_attrs(node, bound, sizes), len(node.outputs))
        actual = evaluate_node(other, small, {})[: len(node.outputs)]
    except (RegraftError, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    if role is Role.SUM:
        zeroed = [
            array if array is None or term is None else _zero(array, term, bound, label, keep)
            for array, term in zip(operands, terms, strict=False)
        ]
        base = evaluate_node(node, zeroed, {})[: len(node.outputs)]
    # a sum label may stand in a second result (a state beside the output): there it is dropped
    expected = [
        result if term is None else _take(result, term, bound, label, keep)
        for result, term in zip(base, (*bound.results, *([None] * len(base))), strict=False)
    ]
    # an operator that chooses and then contracts (moe) rounds like any contraction
    contracts = any(f.role is Role.SUM for axis in _axes(bound) for f in axis)
    copies = Trait.DATA_MOVEMENT if contracts else Trait.DATA_MOVEMENT | Trait.DISCRETE
    exact = bool(node.op.traits & copies)
    for idx, (left, right) in enumerate(zip(actual, expected, strict=True)):
        if problem := _difference(left, right, exact):
            return f"result {idx}: {problem}"
        declared = other.outputs[idx].shape
        if declared is not None and not _fits(declared, left.shape):
            return f"result {idx}: inference says {declared}, eval gives {left.shape}"
    return ""


def _fits(declared: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    return len(declared) == len(shape) and all(
        a == b for a, b in zip(declared, shape, strict=True) if isinstance(a, int)
    )


def _take(array: Array, term: tuple[Axis, ...], bound: BoundRule, label: str, keep: Array) -> Array:
    """Keeps the positions of a label in every axis where it stands."""
    for idx, axis in enumerate(term):
        names = [factor.name for factor in axis]
        if label in names:
            flat = np.arange(array.shape[idx]).reshape([int(str(bound.sizes[n])) for n in names])
            array = np.take(array, _kept(flat, names.index(label), keep).reshape(-1), idx)
    return array


def _zero(array: Array, term: tuple[Axis, ...], bound: BoundRule, label: str, keep: Array) -> Array:
    """Zeroes the positions of a label that `keep` leaves out."""
    for idx, axis in enumerate(term):
        names = [factor.name for factor in axis]
        if label in names:
            flat = np.arange(array.shape[idx]).reshape([int(str(bound.sizes[n])) for n in names])
            kept = _kept(flat, names.index(label), keep)
            mask = np.zeros(array.shape[idx], np.bool_)
            mask[kept.reshape(-1)] = True
            shape = [-1 if i == idx else 1 for i in range(array.ndim)]
            array = np.where(mask.reshape(shape), array, np.zeros((), array.dtype))
    return array


def _kept(flat: Array, position: int, keep: Array) -> Array:
    if len(keep) == 1:
        taken: Array = np.take(flat, keep[0], position)
        return taken
    moved = np.moveaxis(flat, position, -1)
    rest = moved.shape[position:-1]
    blocks = moved.reshape(len(keep), -1, moved.shape[-1])
    taken = np.take_along_axis(blocks, keep[:, None, :], 2)
    shaped = taken.reshape(*moved.shape[:position], *rest, keep.shape[1])
    return np.moveaxis(shaped, -1, position)


def _informative(result: Array) -> bool:
    flat = np.asarray(result).reshape(-1)
    if flat.dtype.kind == "V":
        flat = flat.astype(np.float64)
    finite = flat[np.isfinite(flat)] if flat.dtype.kind in "fc" else flat
    return len(finite) > 1 and bool((finite != finite[0]).any())


def _difference(actual: Array, expected: Array, exact: bool) -> str:
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not actual.size:
        return ""
    if actual.dtype.kind != "f" or exact:
        same = np.array_equal(actual, expected, equal_nan=actual.dtype.kind == "f")
        return "" if same else "elements differ"
    finite = expected[np.isfinite(expected)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    # a sum of fewer terms is blocked and ordered otherwise: at most some 64 terms, one eps for each
    tolerance = 64 * float(np.finfo(actual.dtype).eps) * max(largest, 1.0)
    if np.allclose(actual, expected, rtol=0, atol=tolerance, equal_nan=True):
        return ""
    return f"max difference {np.nanmax(np.abs(actual - expected)):.3g}, allowed {tolerance:.3g}"
