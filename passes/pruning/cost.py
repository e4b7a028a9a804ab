"""What a module costs as a polynomial in the sizes of its groups, compiled for fast evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from regraft.ir.dims import Dim, DimLike, Symbol, bind, product
from regraft.ir.errors import UnsupportedError
from regraft.ir.flops import flops_of, macs_of
from regraft.ir.graph import Scope
from regraft.ir.module import clone_graph
from regraft.ir.opspec import Trait
from regraft.ir.types import TensorType
from regraft.ir.weights import Role
from regraft.passes.analysis.coupling.groups import Coupling, new_size, touched
from regraft.passes.analysis.coupling.spaces import Space

Array = np.ndarray[Any, Any]

MEASURES = ("flops", "macs", "params", "bytes")
_PREFIX = "group:"


class Cost(Protocol):
    """What sizes cost."""

    def total(self, sizes: Array) -> float:
        """Returns the cost at given sizes."""

    def gradient(self, sizes: Array) -> Array:
        """Returns the derivative of the cost by every size."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """A sum of products of group sizes.

    Args:
        measure: What it counts: `flops`, `macs`, `params` or `bytes`.
        coefficients: f64[terms].
        factors: i64[terms, degree]: the groups of each term; the number of groups stands for 1.
        num_groups: Number of groups.
        num_unknown: Nodes whose cost is not known.
    """

    measure: str
    coefficients: Array
    factors: Array
    num_groups: int
    num_unknown: int = 0

    def total(self, sizes: Array) -> float:
        """Returns the cost at given sizes of all groups, f64[groups]."""
        values = np.append(sizes.astype(np.float64), 1.0)
        return float(values[self.factors].prod(1) @ self.coefficients)

    def gradient(self, sizes: Array) -> Array:
        """Returns the derivative of the cost by every group's size, f64[groups]."""
        values = np.append(sizes.astype(np.float64), 1.0)
        parts = values[self.factors]
        result = np.zeros(self.num_groups + 1)
        for column in range(parts.shape[1]):
            others = np.delete(parts, column, 1).prod(1) * self.coefficients
            np.add.at(result, self.factors[:, column], others)
        return result[:-1]


def cost_model(coupling: Coupling, measure: str, dims: Mapping[str, int]) -> CostModel:
    """Returns the cost of a module in terms of the sizes of its groups.

    Args:
        coupling: The module's coupling.
        measure: One of `MEASURES`.
        dims: Sizes of the input symbols.

    Raises:
        UnsupportedError: When a cost is no polynomial in the sizes.
    """
    index = {group.name: i for i, group in enumerate(coupling.groups)}
    sizes: dict[Space, DimLike] = {
        group.space: Dim.of(Symbol(_PREFIX + group.name)) for group in coupling.groups
    }
    terms = _Terms(index)
    if measure in ("params", "bytes"):
        _add_weights(terms, coupling, sizes, measure)
    else:
        _add_nodes(terms, coupling, sizes, measure, dims)
    return terms.compile(measure)


class _Terms:
    """Collects monomials; linear in what is added, where adding Dims one by one is not."""

    def __init__(self, index: Mapping[str, int]) -> None:
        self.index = index
        self.terms: dict[tuple[int, ...], float] = {}
        self.num_unknown = 0

    def add(self, cost: DimLike, factor: float = 1.0) -> bool:
        """Adds a cost; False when it depends on more than group sizes."""
        if isinstance(cost, int):
            self.terms[()] = self.terms.get((), 0.0) + cost * factor
            return True
        found: list[tuple[tuple[int, ...], float]] = []
        for monomial, coefficient in cost.terms:
            groups: list[int] = []
            for atom, power in monomial:
                if not isinstance(atom, Symbol) or not atom.name.startswith(_PREFIX):
                    return False
                groups += [self.index[atom.name.removeprefix(_PREFIX)]] * power
            found.append((tuple(sorted(groups)), coefficient * factor))
        for key, value in found:
            self.terms[key] = self.terms.get(key, 0.0) + value
        return True

    def compile(self, measure: str) -> CostModel:
        degree = max(map(len, self.terms), default=0) or 1
        none = len(self.index)
        factors = np.full((len(self.terms), degree), none)
        for row, key in enumerate(self.terms):
            factors[row, : len(key)] = key
        coefficients = np.array(list(self.terms.values()))
        return CostModel(measure, coefficients, factors, none, self.num_unknown)


def _shape(spaces: Sequence[Space], sizes: dict[Space, DimLike]) -> tuple[DimLike, ...]:
    return tuple(new_size(s, sizes) if touched(s, sizes) else s.size for s in spaces)


def _add_weights(
    terms: _Terms, coupling: Coupling, sizes: dict[Space, DimLike], measure: str
) -> None:
    store = coupling.module.weights
    spaces = coupling.builder.weights
    for name in store:
        stored = store[name]
        if measure == "params" and store.role(name) is not Role.PARAM:
            continue
        shape = _shape(spaces[name], sizes) if name in spaces else stored.shape
        per_element = 1.0 if measure == "params" else stored.dtype.bits / 8
        if not terms.add(product(shape), per_element):
            raise UnsupportedError(f"weight `{name}`: its size {shape} is no polynomial of groups")


def _add_nodes(
    terms: _Terms,
    coupling: Coupling,
    sizes: dict[Space, DimLike],
    measure: str,
    dims: Mapping[str, int],
) -> None:
    """Counts on a copy whose axes have symbols for the groups' sizes."""
    module = coupling.module
    scope = Scope()
    scope.weights, scope.symbols = module.weights, dict(module.symbols)
    for node, copy in zip(
        module.graph.walk(), clone_graph(module.graph, scope).walk(), strict=True
    ):
        for value, symbolic in zip(node.outputs, copy.outputs, strict=True):
            spaces = coupling.axes(value)
            if isinstance(symbolic.type, TensorType) and any(touched(s, sizes) for s in spaces):
                symbolic.type = symbolic.type.with_shape(_shape(spaces, sizes))
        if node.op.traits & Trait.CONSTANT:
            continue
        for name, stated in coupling.builder.stated.get(node, {}).items():
            new = _shape(stated, sizes)
            copy.attrs[name] = new if isinstance(copy.attrs[name], tuple) else new[0]
        cost = (flops_of if measure == "flops" else macs_of)(copy)
        if cost is None or not terms.add(bind(cost, dims)):
            terms.num_unknown += 1
