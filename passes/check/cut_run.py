"""Evaluates a cut: a graph per side, sizes for its symbols, and values for its frontier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.dims import Dim, DimLike, Symbol, bind, symbols_of
from regraft.ir.errors import UnsupportedError
from regraft.ir.evaluate import evaluate_graph
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module, clone_graph
from regraft.ir.opspec import AttrKind
from regraft.ir.rewrite.liveness import defined_symbols
from regraft.ir.types import DType, TensorType, bind_type
from regraft.passes.analysis.domains import Domain, input_domains
from regraft.passes.check.cut import NEW, OLD, Cut
from regraft.passes.check.runners import PROBE_ERRORS, total_weight_bytes
from regraft.passes.check.samples import clamp_size, padding_mask

Array = np.ndarray[Any, Any]
Env = dict[str, int]

FEW_ELEMENTS, MANY_ELEMENTS = 1 << 22, 1 << 23
"""Elements of all values of a cut together, beside a large model and beside others; larger cuts
are not evaluated. Many take 32 MB, 64 MB in f64: the widest convolutions of a ResNet and what they
become are among them."""

_LARGE_BYTES = 512 << 20
"""Weights of a model that is large: it is converted in little more memory than its largest one."""

_SIZES = (1, 3, 4, 8, 16, 32, 64, 128, 256, 640)
"""Sizes tried for symbols; the first two that the old side runs at are used."""

_NUM_SIZES = 2

_RANKS = (2, 3, 1, 4, 0)
"""Ranks tried for values of unknown rank; the two runs start at different ones."""

_UNKNOWN_SHAPE = (3, 5, 2, 4)
"""Sizes of a value of unknown rank, as many as its rank."""


class CannotRunError(Exception):
    """A cut or one of its sides that cannot be evaluated; the message is the reason.

    Args:
        reason: One clause.
        is_unsupported: Whether an operator has no numpy meaning, rather than these inputs.
    """

    def __init__(self, reason: str, *, is_unsupported: bool = True) -> None:
        super().__init__(reason)
        self.is_unsupported = is_unsupported


@dataclass(frozen=True, slots=True)
class Draw:
    """One evaluation of the old side.

    Args:
        env: Sizes of the symbols.
        arrays: Content of the frontier.
        expected: What the old side computes, by position.
        oracle: The same in f64, which gives the noise floor.
    """

    env: Env
    arrays: Sequence[Array]
    expected: Mapping[str, Any]
    oracle: Mapping[str, Any]


def max_elements(module: Module) -> int:
    """Returns how many elements a cut of the module may have."""
    is_large = total_weight_bytes(module) > _LARGE_BYTES
    return FEW_ELEMENTS if is_large else MANY_ELEMENTS


class CutRun:
    """The two sides of a cut as graphs of their own.

    Args:
        cut: The cut.
        limit: Elements of all its values that are evaluated at most.

    Raises:
        CannotRunError: When a frontier value is no tensor of known element type, or an operator
            has no numpy meaning.
    """

    def __init__(self, cut: Cut, limit: int = MANY_ELEMENTS) -> None:
        self.limit = limit
        self.frontier = list(cut.frontier)
        for value in self.frontier:
            if not isinstance(value.type, TensorType) or value.dtype is None:
                raise CannotRunError(f"a value on the frontier has type {value.type}")
        for node in cut.sides:
            if node.op.eval is None:
                raise CannotRunError(f"`{node.op.name}` has no numpy meaning")
            if not node.op.is_pure:
                raise CannotRunError(f"`{node.op.name}` is not pure")
        self.sides = list(cut.sides)
        self.symbols = _outer_symbols(self.frontier, self.sides)
        self._old = _graph(self.frontier, cut.nodes(OLD), cut.old)
        self._new = _graph(self.frontier, cut.nodes(NEW), cut.new)

    def old(self, arrays: Sequence[Array], env: Env, *, oracle: bool = False) -> dict[str, Any]:
        """Returns the old values by position."""
        return _run(self._old, arrays, env, oracle=oracle)

    def new(self, draw: Draw) -> dict[str, Any]:
        """Returns the new values by position."""
        return _run(self._new, draw.arrays, draw.env)

    def domains(self, env: Env) -> list[Domain]:
        """Returns what integer frontier values may be, read off their uses on the old side."""
        graph = clone_graph(self._old)
        for value in graph.inputs:
            value.type = bind_type(value.type, env)
        for node in graph.walk():
            for value in node.outputs:
                value.type = bind_type(value.type, env)
        found = input_domains(graph)
        return [found.get(str(value.name), Domain()) for value in graph.inputs]


def _graph(frontier: Sequence[Value], nodes: Sequence[Node], results: Sequence[Value]) -> Graph:
    scope = results[0].owner
    if scope is None:
        raise AssertionError("a value of an erased node")
    graph = Graph(scope.scope)
    values: dict[Value, Value] = {}
    for i, value in enumerate(frontier):
        copy = graph.add_input(f"v{i}", value.type)
        copy.content = value.content
        values[value] = copy
    for node in nodes:
        made = graph.create(
            node.op,
            [None if v is None else values[v] for v in node.inputs],
            node.attrs,
            num_outputs=len(node.outputs),
            bodies=tuple(clone_graph(body) for body in node.bodies),
            loc=node.loc,
            infer=False,
        )
        for old, fresh in zip(node.outputs, made.outputs, strict=True):
            fresh.name, fresh.type, fresh.content = old.name, old.type, old.content
            values[old] = fresh
    for i, value in enumerate(results):
        graph.add_output(f"result {i}", values[value])
    return graph


def _run(
    graph: Graph, arrays: Sequence[Array], env: Env, *, oracle: bool = False
) -> dict[str, Any]:
    try:
        results = evaluate_graph(graph, arrays, dict(env), oracle=oracle)
    except UnsupportedError as error:
        raise CannotRunError(error.message) from error
    except PROBE_ERRORS as error:
        raise CannotRunError(str(error), is_unsupported=False) from error
    return dict(zip(graph.output_names, results, strict=True))


# -- sizes ----------------------------------------------------------------------------------------


def _outer_symbols(frontier: Sequence[Value], nodes: Sequence[Node]) -> list[Symbol]:
    """Returns the symbols that need a size before the run, by name."""
    found: set[Symbol] = set()
    for value in frontier:
        found |= symbols_of(_dims(value))
    inner: set[Symbol] = set()
    for node in nodes:
        inner |= set(defined_symbols(node))
        for value in node.outputs:
            found |= symbols_of(value.shape or ())
        for attr in node.op.all_attrs.values():
            given = node.attrs.get(attr.name)
            if attr.kind in (AttrKind.DIM, AttrKind.DIMS) and given is not None:
                found |= symbols_of(given if isinstance(given, tuple) else (given,))
    outer = found - {symbol for symbol in inner if symbol.defined} | _frontier_symbols(frontier)
    return sorted(outer, key=lambda symbol: symbol.name)


def _frontier_symbols(frontier: Sequence[Value]) -> set[Symbol]:
    return {symbol for value in frontier for symbol in symbols_of(_dims(value))}


def _dims(value: Value) -> tuple[DimLike, ...]:
    content = value.content if isinstance(value.content, tuple) else (value.content,)
    return (*(value.shape or ()), *(item for item in content if item is not None))


def draws_of(run: CutRun, num_draws: int) -> Iterator[Draw]:
    """Yields evaluations of the old side, at different sizes where it has symbols.

    Args:
        run: The cut.
        num_draws: How many; the first two differ in sizes, later ones take turns.

    Raises:
        CannotRunError: When the old side runs at none of the sizes tried, or is too large.
    """
    failure = CannotRunError("no sizes fit")
    found: list[tuple[Env, int]] = []
    for env in _bindings(run):
        for rank in _ranks(run, len(found)):
            try:
                draw = _one(run, env, rank, len(found))
            except CannotRunError as error:
                failure = error
                continue
            found.append((env, rank))
            yield draw
            break
        if len(found) == _NUM_SIZES:
            break
    if not found:
        raise CannotRunError(f"the cut does not run on generated inputs ({failure})")
    for number in range(len(found), num_draws):
        try:
            yield _one(run, *found[-1 - number % len(found)], number)
        except CannotRunError:
            continue  # these sizes have run before: other values do not suit the operators


def _ranks(run: CutRun, turn: int) -> tuple[int, ...]:
    """Returns the ranks to try for values of unknown rank, one where there are none."""
    if all(value.shape is not None for value in run.frontier):
        return (0,)
    return (*_RANKS[turn:], *_RANKS[:turn])


def _one(run: CutRun, env: Env, rank: int, number: int) -> Draw:
    """Evaluates the old side on values of its own."""
    _check_size(run, env)
    domains = zip(run.frontier, run.domains(env), strict=True)
    arrays = [
        _draw(value, env, rank, domain, number, np.random.default_rng([number, i]))
        for i, (value, domain) in enumerate(domains)
    ]
    return Draw(env, arrays, run.old(arrays, env), run.old(arrays, env, oracle=True))


def _bindings(run: CutRun) -> Iterator[Env]:
    names = _classes(run)
    if not names:
        yield from ({} for _ in range(_NUM_SIZES))
        return
    for size in _SIZES:
        if size == 3:  # distinct odd sizes: what must not be equal is not
            numbers = {leader: 3 + 2 * i for i, leader in enumerate(dict.fromkeys(names.values()))}
            yield {s.name: clamp_size(numbers[names[s.name]], s) for s in run.symbols}
        yield {s.name: clamp_size(size, s) for s in run.symbols}


def _classes(run: CutRun) -> dict[str, str]:
    """Returns the leader of every symbol's class of symbols that are assumed equal."""
    leaders = {symbol.name: symbol.name for symbol in run.symbols}
    scopes = {value.owner.scope for value in run.frontier if value.owner is not None}
    for scope in scopes:
        for left, right in scope.assumptions:
            pair = [d.as_symbol() if isinstance(d, Dim) else None for d in (left, right)]
            if pair[0] is None or pair[1] is None:
                continue
            a, b = (leaders.get(symbol.name) for symbol in pair if symbol is not None)
            if a is not None and b is not None:
                leaders = {name: a if leader == b else leader for name, leader in leaders.items()}
    return leaders


def _check_size(run: CutRun, env: Env) -> None:
    total = 0
    values = [*run.frontier, *(value for node in run.sides for value in node.outputs)]
    for value in values:
        count = 1
        for dim in value.shape or ():
            try:
                size = bind(dim, env)
            except ZeroDivisionError as error:
                raise CannotRunError(f"`{dim}` has no value") from error
            if isinstance(size, int):
                if size < 0:
                    raise CannotRunError(f"`{dim}` would be {size}")
                count *= size
        total += count
    if total > run.limit:
        raise CannotRunError("its values are too large")


# -- values ---------------------------------------------------------------------------------------


def _draw(
    value: Value, env: Env, rank: int, domain: Domain, number: int, rng: np.random.Generator
) -> Array:
    known = constant_of(value, 1 << 20) if value.producer is None else None
    if known is not None:
        return known
    dtype = value.dtype
    if dtype is None:
        raise AssertionError(f"{value!r} was let through")
    shape = _UNKNOWN_SHAPE[:rank] if value.shape is None else _bound(value.shape, env)
    if value.content is not None:
        items = value.content if isinstance(value.content, tuple) else (value.content,)
        return np.asarray(_bound(items, env), np.int64).reshape(shape).astype(dtype.numpy)
    if dtype.is_float:
        # of both signs, positive (what roots and logarithms want), negative, and again
        drawn = rng.uniform(0.1, 2.0, shape) if number % 3 else rng.standard_normal(shape)
        return np.asarray(-drawn if number % 3 == 2 else drawn).astype(dtype.numpy)
    if dtype.is_complex:
        return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(
            dtype.numpy
        )
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype is DType.STRING:
        raise CannotRunError("a value on the frontier holds strings")
    return _draw_ints(dtype, shape, domain, number, rng)


def _draw_ints(
    dtype: DType, shape: tuple[int, ...], domain: Domain, number: int, rng: np.random.Generator
) -> Array:
    if domain.choices and not shape:
        choices = sorted(domain.choices)
        return np.asarray(choices[number % len(choices)], dtype.numpy)
    if domain.high is not None:
        return rng.integers(0, max(domain.high, 1), shape).astype(dtype.numpy)
    if domain.is_mask:
        return padding_mask(shape, "normal").astype(dtype.numpy)
    # small and of both signs in the first draw; the second is valid as sizes and counts
    low = 1 if number % 2 or dtype.name.startswith("U") else -4
    return rng.integers(low, 6, shape).astype(dtype.numpy)


def _bound(dims: Sequence[DimLike], env: Env) -> tuple[int, ...]:
    try:
        sizes = tuple(bind(dim, env) for dim in dims)
    except ZeroDivisionError as error:
        raise CannotRunError(f"a size of {list(map(str, dims))} has no value") from error
    for dim, size in zip(dims, sizes, strict=True):
        if not isinstance(size, int) or size < 0:
            raise CannotRunError(f"`{dim}` would be {size}")
    return tuple(int(size) for size in sizes if isinstance(size, int))
