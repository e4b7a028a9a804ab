"""New content for a weight, written back to the tensors of the checkpoint that it was moved from.

A weight whose elements were only moved (transposed, joined, sliced) keeps its steps, and its
sources get the new elements: they stay parameters under their own names. Any other weight becomes
a tensor of its own that says what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regraft.ir.derive import DerivedWeight, source_names
from regraft.ir.origins import Origin, Relation, origins_of, restore
from regraft.ir.rebind import rebind
from regraft.ir.spill import stored
from regraft.ir.steps import sources
from regraft.ir.weights import Weight, WeightStore

Array = np.ndarray[Any, Any]


def overwrite(
    store: WeightStore, name: str, array: Array, folder: Path | None = None
) -> tuple[str, ...]:
    """Gives a weight new elements, in place; returns the checkpoint tensors that hold them now.

    What else was derived from those tensors follows.

    Args:
        store: The weights.
        name: The weight.
        array: Its content, of its shape; it is cast to its type.
        folder: For large tensors; default: the system's temporary folder.
    """
    name = store.resolve(name)
    weight = store[name]
    if array.shape != weight.shape:
        raise AssertionError(f"`{name}` is {weight.shape}, its new content {array.shape}")
    array = array.astype(weight.dtype.numpy)
    if not isinstance(weight, DerivedWeight):
        store.set(name, stored(array, folder, _made_from(weight)))
        return (name,)
    origins = origins_of(weight.tree)
    held = {source.name: source.weight for source in sources(weight.tree)}
    covered = sum(origin.target.size for origin in origins)
    if any(origin.relation is not Relation.EXACT for origin in origins) or covered != array.size:
        store.set(name, stored(array, folder, tuple(source_names(name, weight))))
        return (name,)
    values = {
        source: stored(_restored(held[source], source, origins, array), folder) for source in held
    }
    rebind(store, values)
    return tuple(values)


def _restored(weight: Weight, name: str, origins: list[Origin], array: Array) -> Array:
    content = np.array(weight.numpy())
    for origin in origins:
        if origin.source == name:
            restore(origin, content, array)
    return content


def _made_from(weight: Weight) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(weight, "made_from", ())
    return found


def readers_of_sources(store: WeightStore) -> dict[str, list[str]]:
    """Returns, by name of a checkpoint tensor, the weights of the store that follow from it."""
    found: dict[str, list[str]] = {}
    for name, source in _sources(store):
        found.setdefault(source, []).append(name)
    return found


def _sources(store: WeightStore) -> Iterator[tuple[str, str]]:
    for name in store:
        for source in source_names(name, store[name]):
            yield name, source
