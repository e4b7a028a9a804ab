"""Proves raised places: old and new values on generated inputs, at two bindings of the symbols.

Inputs are drawn so that masks are seen in every state that matters: nothing hidden, and a random
part hidden with at least the first key left. Places of equal structure are evaluated once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import Dim, DimLike, Symbol, bind, symbols_of
from regraft.ir.errors import RegraftError
from regraft.ir.evaluate import bind_type, evaluate_node
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.opspec import AttrKind, Trait
from regraft.ir.types import DType
from regraft.passes.analysis.positions import is_of_positions

Array = np.ndarray[Any, Any]
Env = dict[str, int]

_MAX_NODES, _MAX_LOOP_NODES = 160, 6000
_MAX_ELEMENTS = 1 << 22
_RTOL = 1e-6
"""Relative to the largest element; in f64 only rounded constants (1/sqrt(d) in f32) differ."""

_SIZES = ((2, 5), (1, 3), (2, 8), (3, 16), (1, 32), (2, 64), (1, 1))
"""(first symbol, further symbols); the first two at which the old side runs are used."""

_NUM_STYLES = 3

_PROBE_ERRORS = (
    RegraftError, ValueError, IndexError, OverflowError, ZeroDivisionError, KeyError, TypeError,
)  # fmt: skip


class CannotEvaluateError(Exception):
    """A place cannot be evaluated; the message says why."""


class Prover:
    """Compares old with new values; remembers structures.

    Attributes:
        num_proved: Places equal on the inputs drawn, repeated structures included.
        num_evaluated: Structures evaluated.
        unproved: Values that could not be evaluated, with the reason.
    """

    def __init__(self) -> None:
        self.num_proved = self.num_evaluated = 0
        self.unproved: dict[str, str] = {}
        self._known: dict[Hashable, tuple[str, str]] = {}  # how it differs, why that is unknown

    @property
    def num_unproved(self) -> int:
        """Places that are too large to evaluate, or that no sizes tried fit."""
        return len(self.unproved)

    def refute(
        self,
        old: Value,
        new: Value,
        scratch: Graph,
        ends: Sequence[Value] | None = None,
        least: Mapping[str, int] | None = None,
    ) -> str:
        """Returns how `new` differs from `old`, "" when it does not or cannot be evaluated.

        Args:
            old: A value of the module.
            new: A value of `scratch`, whose nodes read values of the module.
            scratch: Its graph.
            ends: Values that are drawn; default: those that the new nodes read.
            least: Sizes by symbol below which what is compared shows nothing.
        """
        try:
            reason = self._difference(old, new, scratch, ends, least or {})
        except CannotEvaluateError as error:
            self.unproved[str(old.name)] = str(error)
            return ""
        self.num_proved += not reason
        return reason

    def _difference(
        self,
        old: Value,
        new: Value,
        scratch: Graph,
        ends: Sequence[Value] | None,
        least: Mapping[str, int],
    ) -> str:
        read = _frontier(scratch)
        frontier = [v for v in read if not is_of_positions(v)] if ends is None else list(ends)
        nodes = _between([old, *read], frontier, _MAX_NODES if ends is None else _MAX_LOOP_NODES)
        made = list(scratch)
        key = _key(frontier, [*nodes, *made])
        if key not in self._known:
            self.num_evaluated += 1
            try:
                self._known[key] = _compare(old, new, frontier, nodes, made, least), ""
            except CannotEvaluateError as error:
                self._known[key] = "", str(error)
        reason, unknown = self._known[key]
        if unknown:
            raise CannotEvaluateError(unknown)
        return reason


def _frontier(scratch: Graph) -> list[Value]:
    """Returns the values that the new nodes read."""
    found: dict[Value, None] = {}
    for node in scratch:
        for value in node.inputs:
            if value is None or value.owner is scratch:
                continue
            found[value] = None
    return list(found)


def _between(
    wanted: Sequence[Value], frontier: Sequence[Value], most: int = _MAX_NODES
) -> list[Node]:
    """Returns the nodes that compute values from the frontier, in order.

    Raises:
        CannotEvaluateError: When there are too many, or one that cannot be evaluated.
    """
    ends = set(frontier)
    found: dict[Node, None] = {}
    stack = [*wanted]
    while stack:
        value = stack.pop()
        if value in ends:
            continue
        node = value.producer
        if node is None:
            # the old side depends on an input that the new one does not read
            raise CannotEvaluateError(f"it depends on `{value.name}`, which its operator does not")
        if node in found:
            continue
        found[node] = None
        if len(found) > most:
            raise CannotEvaluateError(f"more than {most} nodes compute it")
        if not node.op.is_pure or node.op.eval is None or node.bodies:
            raise CannotEvaluateError(f"a node `{node.op.name}` among what computes it")
        if not _has_content(node):
            stack.extend(v for v in node.inputs if v is not None)
    return sorted(found, key=lambda node: node.order)


def _has_content(node: Node) -> bool:
    return Trait.CONSTANT not in node.op.traits and node.outputs[0].content is not None


def _key(frontier: Sequence[Value], nodes: Sequence[Node]) -> Hashable:
    numbers: dict[Value, int] = {}
    parts: list[Hashable] = []
    for value in frontier:
        numbers[value] = len(numbers)
        parts.append(value.type)
    for node in nodes:
        operands = tuple(-1 if v is None else numbers.get(v, -2) for v in node.inputs)
        parts.append((node.op, _attrs_key(node), operands))
        for value in node.outputs:
            numbers[value] = len(numbers)
    return tuple(parts)


def _attrs_key(node: Node) -> Hashable:
    if Trait.CONSTANT in node.op.traits:
        array = constant_of(node.outputs[0], 256)
        return (node.outputs[0].type, None if array is None else array.tobytes())
    return tuple(
        value.tobytes() if isinstance(value, np.ndarray) else value for value in node.attrs.values()
    )


def _compare(
    old: Value,
    new: Value,
    frontier: Sequence[Value],
    nodes: Sequence[Node],
    made: Sequence[Node],
    least: Mapping[str, int],
) -> str:
    """Evaluates both sides; returns how they differ, "" when they do not.

    Raises:
        CannotEvaluateError: When no sizes fit, or an input has no generator.
    """
    done = 0
    values = [*frontier, *_results(nodes), *_results(made)]
    for number, env in enumerate(_bindings(values, nodes, least)):
        if not _fits(values, env):
            continue
        has_run = False
        for style in range(_NUM_STYLES):
            drawn = _drawn(frontier, env, style, np.random.default_rng([number, style]))
            sizes = dict(env)  # gains those that the run finds
            try:
                known = _run(nodes, drawn, sizes)
            except _PROBE_ERRORS:
                break  # these sizes do not fit the old side
            expected = known[old]
            if np.isnan(expected).all():
                continue  # every key is hidden: proves nothing
            reason = _difference(expected, _run(made, known, sizes)[new])
            if reason:
                return f"{reason} at {', '.join(f'{k}={v}' for k, v in env.items())}"
            has_run = True
        done += has_run
        if done == 2:
            return ""
    if not done:
        raise CannotEvaluateError("it runs at none of the sizes tried")
    return ""


def evaluated(
    value: Value, end: Value, draw: Callable[[tuple[int, ...]], Array]
) -> tuple[Array, Array]:
    """Returns what is drawn for `end` and what `value` then is, in f64.

    Sizes that are not static are large: what depends on how many rows there are shows.

    Raises:
        CannotEvaluateError: When more than `end` decides it, or it runs at none of the sizes.
    """
    nodes = _between([value], [end])
    values = [end, *_results(nodes)]
    symbols = _symbols(values, nodes)
    for number in (64, 16, 1):
        env = {symbol.name: _clamped(number, symbol) for symbol in symbols}
        if not _fits(values, env):
            continue
        shape = tuple(bind(dim, env) for dim in end.shape or ())
        drawn = draw(tuple(int(size) for size in shape if isinstance(size, int)))
        try:
            return drawn, np.asarray(_run(nodes, {end: drawn}, env)[value])
        except _PROBE_ERRORS:
            continue
    raise CannotEvaluateError("it runs at none of the sizes tried")


def _results(nodes: Sequence[Node]) -> list[Value]:
    return [value for node in nodes for value in node.outputs]


def _run(nodes: Sequence[Node], drawn: Mapping[Value, Array], env: Env) -> dict[Value, Any]:
    """Evaluates nodes; `env` gains the sizes that they find."""
    known: dict[Value, Any] = dict(drawn)
    for node in nodes:
        if _has_content(node):
            content, out = node.outputs[0].content, node.outputs[0]
            items = content if isinstance(content, tuple) else (content,)
            bound = [bind(item, env) for item in items if item is not None]
            array = np.asarray(bound, out.dtype.numpy if out.dtype else np.int64)
            known[out] = array if isinstance(content, tuple) else array[0]
            continue
        operands = [None if v is None else known[v] for v in node.inputs]
        results = evaluate_node(node, operands, env, oracle=True)
        known.update(zip(node.outputs, results, strict=False))
        for value in node.outputs:
            bind_type(value, known[value], env)
    return known


def _difference(expected: Array, actual: Array) -> str:
    if expected.shape != actual.shape:
        return f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    usable = ~np.isnan(expected)  # a row without any key: 0 in the canonical operator
    if not usable.any():
        return ""
    a, b = expected[usable], actual[usable]
    error, scale = float(np.abs(a - b).max()), float(np.abs(a).max())
    if not error <= _RTOL * max(scale, 1e-30):
        return f"differs by {error:.3g} of {scale:.3g}"
    return ""


# -- sizes and values ----------------------------------------------------------------------


def _bindings(
    values: Sequence[Value], nodes: Sequence[Node], least: Mapping[str, int]
) -> Iterator[Env]:
    symbols = _symbols(values, nodes)
    if not symbols:
        yield {}
        yield {}
        return
    for first, rest in _SIZES:
        for is_distinct in (True, False):
            env = {}
            for i, symbol in enumerate(symbols):
                size = first if i == 0 else rest + 2 * i * is_distinct
                size = max(size, least.get(symbol.name, 0))
                env[symbol.name] = _clamped(size, symbol)
            yield env


def _symbols(values: Sequence[Value], nodes: Sequence[Node]) -> list[Symbol]:
    found: dict[Symbol, None] = {}  # those that the run defines come with it
    for value in values:
        for dim in value.shape or ():
            if isinstance(dim, Dim):
                found.update(dict.fromkeys(sorted(symbols_of((dim,)), key=lambda s: s.name)))
    for node in nodes:
        for attr in node.op.all_attrs.values():
            given: DimLike | tuple[DimLike, ...] | None = node.attrs.get(attr.name)
            if attr.kind in (AttrKind.DIM, AttrKind.DIMS) and given is not None:
                dims = given if isinstance(given, tuple) else (given,)
                found.update(dict.fromkeys(sorted(symbols_of(dims), key=lambda s: s.name)))
    return [symbol for symbol in found if not symbol.defined]


def _clamped(size: int, symbol: Symbol) -> int:
    size = -(-max(size, symbol.lo) // symbol.multiple_of) * symbol.multiple_of
    return size if symbol.hi is None else min(size, symbol.hi)


def _fits(values: Sequence[Value], env: Env) -> bool:
    for value in values:
        total = 1
        for dim in value.shape or ():
            try:
                size = bind(dim, env)
            except ZeroDivisionError:
                return False
            if not isinstance(size, int):
                if any(symbol.defined for symbol in symbols_of((size,))):
                    continue  # what the run finds is no larger than what it is found in
                return False
            if size < 0:
                return False
            total *= size
        if total > _MAX_ELEMENTS:
            return False
    return True


def _drawn(
    frontier: Sequence[Value], env: Env, style: int, rng: np.random.Generator
) -> dict[Value, Array]:
    drawn: dict[Value, Array] = {}
    for value in frontier:
        constant = constant_of(value, 1 << 24)
        if constant is not None:
            is_float = value.dtype is not None and value.dtype.is_float
            drawn[value] = constant.astype(np.float64) if is_float else constant
            continue
        shape = tuple(bind(dim, env) for dim in value.shape or ())
        dtype = value.dtype
        if value.shape is None or dtype is None or not all(isinstance(d, int) for d in shape):
            raise CannotEvaluateError(f"the type {value.type} of `{value.name}`")
        sizes = tuple(int(d) for d in shape if isinstance(d, int))
        if dtype.is_float:
            drawn[value] = rng.standard_normal(sizes)
        elif dtype is DType.BOOL:
            drawn[value] = _condition(sizes, style, rng)
        elif dtype.is_integer:
            drawn[value] = rng.integers(0, 2, sizes).astype(dtype.numpy)
        else:
            raise CannotEvaluateError(f"no values are generated for {dtype}")
    return drawn


def _condition(shape: tuple[int, ...], style: int, rng: np.random.Generator) -> Array:
    """Returns a mask: random with the first position true and the second false, all true, or none.

    Whichever value hides, one of the first two keys of a row is left.
    """
    if style:
        return np.full(shape, style == 1)
    mask = rng.random(shape) < 0.6
    if shape:
        mask[..., 0] = True
        mask[..., 1:2] = False
    return mask
