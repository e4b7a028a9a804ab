"""New values for checkpoint tensors: what was derived from them follows."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.ir.derive import DerivedWeight
from regraft.ir.errors import UsageError
from regraft.ir.steps import Source, sources, with_sources
from regraft.ir.types import TensorType
from regraft.ir.weights import ArrayWeight, MappedWeight, Weight, WeightStore


def rebind(store: WeightStore, values: Mapping[str, Weight]) -> list[str]:
    """Gives tensors of the checkpoint new values, in place; nothing is evaluated.

    A name is that of a tensor as it was loaded: a weight of the store that is not derived, or a
    source of derived weights, which the store need not hold any more. Derived weights are data in
    which sources stand by name, so that all of them in the store follow. `WeightStore.set` in
    contrast changes what one name means and leaves its sources alone.

    Args:
        store: The weights.
        values: New tensors by name, of the old types and sizes.

    Returns:
        The names of the weights that changed, in the store's order.

    Raises:
        UsageError: For a name that no tensor has, another type or size, or a tensor whose values
            were folded into a weight for good; nothing is changed then.

    Cost: O(steps of the derived weights).
    """
    given = {store.resolve(name): weight for name, weight in values.items()}
    _check(given, store)

    def new(source: Source) -> Source:
        weight = given.get(source.name)
        return source if weight is None else Source(source.name, weight)

    changed = []
    for name in list(store):
        weight = store[name]
        if not isinstance(weight, DerivedWeight):
            if name in given:
                store.set(name, given[name])
                changed.append(name)
        elif any(source.name in given for source in sources(weight.tree)):
            store.set(name, weight.with_tree(with_sources(weight.tree, new)))
            changed.append(name)
    return changed


def _check(given: Mapping[str, Weight], store: WeightStore) -> None:
    """Checks all names, types and sizes.

    Raises:
        UsageError: With every problem.
    """
    held: dict[str, dict[int, Weight]] = {name: {} for name in given}
    problems = []
    for name in store:
        weight = store[name]
        if isinstance(weight, DerivedWeight):
            for source in sources(weight.tree):
                if source.name in held:
                    held[source.name][id(source.weight)] = source.weight
        elif name in held:
            held[name][id(weight)] = weight
        problems += [
            f"`{name}` was computed from `{source}` for good, and would keep its values"
            for source in _made_from(weight)
            if source in given
        ]
    for name, weight in given.items():
        problems += _mismatches(name, weight, list(held[name].values()))
    if problems:
        raise UsageError(
            "; ".join(problems),
            hint="names, types and sizes are those of the checkpoint that was loaded",
        )


def _made_from(weight: Weight) -> tuple[str, ...]:
    if isinstance(weight, ArrayWeight | MappedWeight):
        return weight.made_from
    if isinstance(weight, DerivedWeight):
        return tuple(name for source in sources(weight.tree) for name in _made_from(source.weight))
    return ()


def _mismatches(name: str, weight: Weight, held: list[Weight]) -> list[str]:
    if not held:
        return [f"`{name}` is no tensor that the weights follow from"]
    if len(held) > 1:
        return [f"`{name}` names {len(held)} tensors: it was replaced after others derived from it"]
    before, after = TensorType(held[0].dtype, held[0].shape), TensorType(weight.dtype, weight.shape)
    return [] if before == after else [f"`{name}` is {after}, expected {before}"]
