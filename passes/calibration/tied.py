"""Constants that products multiply by, each once however often it is read; their new content."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.constants import weight
from regraft.ir.derive import DerivedWeight, source_names
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.origins import Relation, origins_of
from regraft.ir.overwrite import overwrite
from regraft.ir.weights import WeightStore
from regraft.passes.calibration.moments import Key, Moments, key_of
from regraft.passes.calibration.products import ConstantProduct, constant_products
from regraft.passes.protocol import Skip

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """A constant and all products by it.

    Args:
        name: Of the weight.
        products: At least one; all see the constant as the same stack.
    """

    name: str
    products: tuple[ConstantProduct, ...]

    def stack(self) -> Array:
        """Returns f32[E, K, N]."""
        return self.products[0].stack()

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, K and N."""
        count, size, width = self.products[0].layout.stack(_placeholder(self.products[0])).shape
        return count, size, width

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.products[0].num_weights

    def moments(self, found: dict[Key, Moments]) -> Moments:
        """Returns what was seen of the inputs of all its products together."""
        first, *others = [found[key_of(each)] for each in self.products]
        total = Moments(first.second, first.total, first.num_rows)
        for other in others:
            total = Moments(
                total.second + other.second,
                total.total + other.total,
                total.num_rows + other.num_rows,
            )
        return total

    def overwrite(
        self, store: WeightStore, stack: Array, folder: Path | None = None
    ) -> tuple[str, ...]:
        """Gives the constant new content f[E, K, N] in the store of its module, or of a copy.

        Returns:
            The checkpoint tensors that hold it.
        """
        return overwrite(store, self.name, self.products[0].layout.unstack(stack), folder)

    def overwrite_array(self, store: WeightStore, array: Array) -> tuple[str, ...]:
        """Gives the constant new content in its own shape."""
        return overwrite(store, self.name, array)


def _placeholder(product: ConstantProduct) -> Array:
    """Returns an array of the constant's shape that takes no memory."""
    shape = tuple(size for size in product.weight.shape or () if isinstance(size, int))
    return np.broadcast_to(np.zeros((), np.int8), shape)


def matrices_of(module: Module, keep: Sequence[str] = ()) -> tuple[list[Matrices], list[Skip]]:
    """Returns the constants that products of the main graph multiply by, and what is left alone.

    Args:
        module: The module.
        keep: Names, or globs, of weights to leave alone.
    """
    by_constant: dict[str, list[ConstantProduct]] = {}
    skipped: list[Skip] = []
    for each in constant_products(module.graph):
        if isinstance(each, Skip):
            skipped.append(each)
            continue
        made = each.weight.producer
        if made is None or made.op is not weight:
            skipped.append(Skip(each.name, "a constant of a few numbers"))
            continue
        by_constant.setdefault(module.weights.resolve(each.name), []).append(each)
    readers = _readers(module)
    found: list[Matrices] = []
    for name, products in by_constant.items():
        item = Matrices(name, tuple(products))
        if any(fnmatch.fnmatchcase(item.name, pattern) for pattern in keep):
            skipped.append(Skip(item.name, "kept by option"))
            continue
        reason = _other_use(module, item, readers)
        if reason is None:
            found.append(item)
        else:
            skipped.append(Skip(item.name, reason))
    return found, skipped


def _readers(module: Module) -> dict[str, list[tuple[str, Value]]]:
    """Returns, by checkpoint tensor, the constants that follow from it, with their names."""
    found: dict[str, list[tuple[str, Value]]] = {}
    for node in module.graph.walk():
        if node.op is weight and node.output.num_uses:
            name = module.weights.resolve(node.attrs["name"])
            for source in source_names(name, module.weights[name]):
                found.setdefault(source, []).append((name, node.output))
    return found


def _other_use(
    module: Module, item: Matrices, readers: dict[str, list[tuple[str, Value]]]
) -> str | None:
    """Returns why a constant cannot change: what else reads it."""
    if len({each.layout.form for each in item.products}) > 1:
        ops = " and ".join(dict.fromkeys(f"`{each.node.op.name}`" for each in item.products))
        return f"{ops} read its axes in two ways"
    own = {each.node for each in item.products}
    for value in dict.fromkeys(each.weight for each in item.products):
        for user, _ in value.uses:
            if user not in own:
                what = f"`{user.op.name}`" if isinstance(user, Node) else "an output of the graph"
                return f"{what} reads it too"
    name = item.name
    for source in source_names(name, module.weights[name]):
        for other, value in readers.get(source, ()):
            if other == name and value in {each.weight for each in item.products}:
                continue
            if other == name or _overlap(module, name, other, source):
                users = ", ".join(dict.fromkeys(f"`{user.op.name}`" for user in value.users))
                return f"it shares `{source}` with what {users or 'an output'} reads"
    return None


def _overlap(module: Module, name: str, other: str, source: str) -> bool:
    """Returns whether two weights may follow from the same elements of a source."""
    seen: list[Array] = []
    for each in (name, other):
        found = module.weights[each]
        if not isinstance(found, DerivedWeight):
            return True
        origins = [origin for origin in origins_of(found.tree) if origin.source == source]
        if any(origin.relation is Relation.MIXED for origin in origins):
            return True
        seen.append(np.concatenate([origin.positions for origin in origins]))
    return bool(np.intersect1d(seen[0], seen[1]).size)
