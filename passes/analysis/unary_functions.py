"""Activation functions, told by what they compute: one table of hypotheses for all spellings.

A hypothesis names a canonical operator and reads its parameters off a few probes; it holds when the
operator, evaluated on all probes, agrees with the cone. Nothing here knows how an exporter spells
a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import activation, functions
from regraft.ir.opspec import OpSpec
from regraft.passes.analysis.cones import Cone, ConeFinder, loses_nothing, same_sizes
from regraft.passes.analysis.probing import (
    constant_error,
    evaluate_cone,
    evaluate_operator,
    short_number,
    snap,
)

Array = np.ndarray[Any, Any]
At = Callable[[float], float]
Params = dict[str, float | bool]
References = dict[tuple[OpSpec, tuple[tuple[str, float | bool], ...]], Array]

SATURATING = frozenset({"sigmoid", "hard_sigmoid", "softmax", "tanh"})
"""Activations that gate something rather than feed a layer."""


@dataclass(frozen=True, slots=True)
class UnaryFunction:
    """A function of one number.

    Args:
        name: `gelu`, `gelu_tanh`, `swish`, `quick_gelu`, `relu`, `relu2`, …
        op: The canonical operator, None when it takes several.
        attrs: The operator's attributes, as pairs.
    """

    name: str
    op: OpSpec | None
    attrs: tuple[tuple[str, float | bool], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """A place where an activation function is computed.

    Args:
        function: What is computed.
        input: What it is applied to.
        output: The result.
        nodes: What computes it, the last node first.
        node: The canonical operator's node, None when it is spelled out.
    """

    function: UnaryFunction
    input: Value
    output: Value
    nodes: tuple[Node, ...]

    @property
    def is_canonical(self) -> bool:
        """Whether one canonical operator computes it."""
        return len(self.nodes) == 1 and self.nodes[0].op is self.function.op


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """An operator, and its parameters: fixed ones, or solved from probes."""

    op: OpSpec
    solve: Callable[[At], Params | None] | None = None
    fixed: tuple[tuple[str, float | bool], ...] = ()


_GELU_DIFFERENCE = 5e-4
"""Largest difference between gelu and its tanh approximation."""

_FAR = 60.0
_HUGE = 1e6


def _clip(at: At) -> Params | None:
    low, high = at(-_HUGE), at(_HUGE)
    params: Params = {}
    if abs(low) < _HUGE / 10:
        params["min"] = low
    if abs(high) < _HUGE / 10:
        params["max"] = high
    return params if params and low < high else None


def _leaky(at: At) -> Params | None:
    slope = -at(-1.0)
    return {"alpha": slope} if _near(at(_FAR), _FAR) and slope != 1 else None  # 1: the identity


def _hard_sigmoid(at: At) -> Params | None:
    middle = at(0.0)
    if not 0 < middle < 1 or not _near(at(_HUGE), 1.0):
        return None
    return {"alpha": (at(1e-3) - middle) / 1e-3, "beta": middle}


def _swish(at: At) -> Params | None:
    gate = at(1.0)
    if not 0 < gate < 1 or not _near(at(_HUGE), _HUGE):
        return None
    return {"alpha": math.log(gate / (1 - gate))}


def _elu(at: At) -> Params | None:
    return {"alpha": -at(-_FAR)} if _near(at(_FAR), _FAR) else None


def _selu(at: At) -> Params | None:
    gamma = at(1.0)
    if gamma == 0 or not _near(at(_FAR), _FAR * gamma):
        return None
    alpha = -at(-_FAR) / gamma
    return {"gamma": gamma, "alpha": alpha} if abs(alpha) > 1e-3 else None  # else a scaled relu


def _near(number: float, wanted: float) -> bool:
    """Returns whether a probe can be what a hypothesis wants, rounded constants considered."""
    return abs(number - wanted) <= 1e-2 * abs(wanted)


_HYPOTHESES = (
    _Hypothesis(activation.relu),
    _Hypothesis(activation.clip, _clip),
    _Hypothesis(activation.leaky_relu, _leaky),
    _Hypothesis(activation.gelu, fixed=(("tanh", False),)),
    _Hypothesis(activation.gelu, fixed=(("tanh", True),)),
    _Hypothesis(activation.swish, _swish),
    _Hypothesis(activation.hard_swish),
    _Hypothesis(activation.hard_sigmoid, _hard_sigmoid),
    _Hypothesis(activation.sigmoid),
    _Hypothesis(functions.tanh),
    _Hypothesis(activation.softplus),
    _Hypothesis(activation.mish),
    _Hypothesis(activation.elu, _elu),
    _Hypothesis(activation.celu, _elu),
    _Hypothesis(activation.selu, _selu),
    _Hypothesis(activation.softsign),
)

ACTIVATIONS = frozenset(
    {*activation.OPS, functions.tanh} - {activation.prelu, activation.shrink, activation.clip}
)
"""Operators that are activation functions by themselves; so is a clip whose bounds are static."""

_SPECIAL = (0.0, 1.0, -1.0, 1e-3, _FAR, -_FAR, _HUGE, -_HUGE)
_GRID = np.concatenate(
    [
        np.array(_SPECIAL),
        np.linspace(-12, 12, 241),
        np.geomspace(1e-4, _FAR, 30),
        -np.geomspace(1e-4, _FAR, 30),
        np.array([-3e4, -500.0, 500.0, 3e4]),
    ]
)


class ActivationFinder:
    """Finds the activation functions of a graph; identifies equal structures once."""

    __slots__ = ("_finder", "_known", "_references")

    def __init__(self, finder: ConeFinder | None = None) -> None:
        self._finder = finder or ConeFinder(reductions=False, max_nodes=24)
        self._known: dict[int, UnaryFunction | None] = {}
        self._references: References = {}

    def find(self, graph: Graph, taken: set[Node] | None = None) -> tuple[Activation, ...]:
        """Returns the activations of one graph in topological order, the largest cones.

        Args:
            graph: The graph; bodies are graphs of their own.
            taken: Nodes that belong to something else; the nodes found are added.

        Cost: O(nodes x nodes of a cone).
        """
        taken = set() if taken is None else taken
        found: list[Activation] = []
        self._finder.scan(graph)
        for node in reversed(graph):
            if node in taken or not self._finder.joins(node.op):
                continue
            here = self._largest(node)
            if here is not None:
                found.append(here)
                taken.update(here.nodes)
        return tuple(reversed(found))

    def _largest(self, node: Node) -> Activation | None:
        """Returns the largest activation that the node is the last of."""
        y = node.outputs[0]
        if y.dtype is None or not y.dtype.is_float:
            return None
        best: Activation | None = None
        for cone in self._finder.cones(y):
            if cone.vectors or cone.escaping:
                break
            if len(cone.nodes) == 1:
                own = canonical_function(node)
                if own is not None:
                    best = Activation(own, cone.x, y, cone.nodes)
                continue
            if not _keeps_type(cone):
                continue
            if cone.key not in self._known:
                self._known[cone.key] = identify(cone, self._references)
            function = self._known[cone.key]
            if function is not None:
                best = Activation(function, cone.x, y, cone.nodes)
        return best


def canonical_function(node: Node) -> UnaryFunction | None:
    """Returns the function that a single operator computes, None when it is no activation."""
    attrs = node.attrs
    if node.op is activation.clip:
        if any(value is not None for value in node.inputs[1:]):
            return None
        return _function(activation.clip, {k: v for k, v in attrs.items() if v is not None})
    return _function(node.op, attrs) if node.op in ACTIVATIONS else None


def identify(cone: Cone, references: References | None = None) -> UnaryFunction | None:
    """Returns the function that a cone without vectors computes, None when it is none we know.

    Args:
        cone: The cone.
        references: What functions without solved parameters give on the grid; filled on the way.
    """
    references = {} if references is None else references
    probes = np.concatenate([_GRID, *_around(cone.numbers.values())])
    wanted = evaluate_cone(cone, probes)
    if wanted.size != probes.size:
        return None
    wanted = wanted.reshape(probes.shape)
    near = np.abs(probes) <= _FAR
    if not np.isfinite(wanted[near]).all() or _is_affine(probes[near], wanted[near]):
        return None
    error = constant_error(cone)
    special = dict(zip(_SPECIAL, wanted.tolist(), strict=False))
    best: UnaryFunction | None = None
    for op, params in _solved(cone, special):
        if not params or op is activation.gelu:  # nothing was solved: the grid is known
            key = op, tuple(params.items())
            if key not in references:
                references[key] = evaluate_operator(op, params, _GRID)
            if _distance(references[key], wanted[: _GRID.size]) > error:
                continue
        distance = _distance(evaluate_operator(op, params, probes), wanted)
        if distance <= error:
            # a later hypothesis has to be clearly better: an elu is a selu, too
            best, error = _function(op, params), distance / 2
            if distance == 0:
                return best
    return best or _squared_relu(special, probes, wanted, error)


def _squared_relu(
    special: Mapping[float, float], probes: Array, wanted: Array, error: float
) -> UnaryFunction | None:
    """`scale * relu(x)^2 + shift`; scale and shift are learned in StarReLU (Yu et al. 2022)."""
    shift = special[0.0]
    scale = special[1.0] - shift
    if not scale or _distance(scale * np.maximum(probes, 0) ** 2 + shift, wanted) > error:
        return None
    plain = abs(scale - 1) <= error and abs(shift) <= error
    return UnaryFunction("relu2", None, () if plain else (("scale", scale), ("shift", shift)))


def _is_affine(x: Array, y: Array) -> bool:
    """Returns whether y is a constant or a straight line."""
    low, high = int(np.argmin(x)), int(np.argmax(x))
    slope = (y[high] - y[low]) / (x[high] - x[low])
    line = y[low] + slope * (x - x[low])
    return bool(np.abs(y - line).max() <= 1e-9 * max(np.abs(y).max(), 1.0))


def _solved(cone: Cone, special: Mapping[float, float]) -> Iterator[tuple[OpSpec, Params]]:
    coarse = constant_error(cone) > _GELU_DIFFERENCE
    has_erf = any(node.op is functions.erf for node in cone.nodes)
    for hypothesis in _HYPOTHESES:
        if hypothesis.solve is None:
            if (
                coarse
                and hypothesis.op is activation.gelu
                and dict(hypothesis.fixed)["tanh"] == has_erf
            ):
                continue  # numbers of 16 bits do not tell the two apart
            yield hypothesis.op, dict(hypothesis.fixed)
            continue
        params = hypothesis.solve(special.__getitem__)
        if params is None or not all(np.isfinite(list(params.values()))):
            continue
        yield (
            hypothesis.op,
            {k: v if isinstance(v, bool) else _settle(v, cone) for k, v in params.items()},
        )


def _settle(number: float, cone: Cone) -> float:
    """Returns a solved parameter as the number that was meant."""
    snapped = snap(number, cone, within=1e-5)
    if snapped != number:
        return snapped
    short = short_number(number, cone.x.dtype)
    return short if abs(short - number) <= 1e-6 * abs(number) else number


def _around(numbers: Sequence[float] | Any) -> Iterator[Array]:
    """Yields probes on both sides of the numbers that a cone may compare with."""
    for number in numbers:
        if np.isfinite(number) and abs(number) < _HUGE:
            step = max(abs(number), 1.0) * 1e-3
            yield np.array([number - step, number, number + step, -number - step, -number + step])


def _distance(found: Array, wanted: Array) -> float:
    """Returns the largest difference, relative to 1 and above; far overflow is forgiven."""
    both = np.isfinite(found) & np.isfinite(wanted)
    if not np.isfinite(found).all():
        return math.inf
    scale = np.maximum(np.abs(found), 1.0)
    return float(np.max(np.abs(found - wanted)[both] / scale[both]))


def _function(op: OpSpec, attrs: Mapping[str, Any]) -> UnaryFunction:
    name = op.name
    if op is activation.gelu and attrs["tanh"]:
        name = "gelu_tanh"
    elif op is activation.swish:
        alpha = attrs["alpha"]
        name = {1.0: "silu", 1.702: "quick_gelu"}.get(round(alpha, 6), "swish")
    elif op is activation.clip and attrs == {"min": 0.0, "max": 6.0}:
        name = "relu6"
    elif op is activation.clip and attrs == {"min": 0.0}:
        name = "relu"
    return UnaryFunction(name, op, tuple(sorted(attrs.items())))


def _keeps_type(cone: Cone) -> bool:
    """Returns whether the function maps a tensor to one of its type and loses nothing inside."""
    x, y = cone.x, cone.y
    if x.dtype is not y.dtype or x.dtype is None:
        return False
    if not same_sizes(x, y) and not all(value.rank == 0 for value in cone.numbers):
        return False
    return loses_nothing(cone)
