"""The config of a smaller model, from the positions that its tensors kept.

Nothing is guessed from sizes: the table of the family says which config value lies on which axis,
and every tensor must agree. What the config cannot say is a problem that names the tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.backends.huggingface.family import Axis, Family, Heads
from regraft.backends.huggingface.recover import Recovered

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class _Count:
    """Old and new value of a config key, with the tensors that say so."""

    old: int
    new: dict[int, str] = field(default_factory=dict)

    @property
    def value(self) -> int:
        """The new value, when all tensors agree."""
        return next(iter(self.new))


class ConfigChange:
    """Finds the new config of a model.

    Args:
        config: The content of the old `config.json`.
        family: The table of its family.

    Attributes:
        problems: What the config cannot say.
    """

    def __init__(self, config: Mapping[str, Any], family: Family) -> None:
        self._old = config
        self._config: dict[str, Any] = copy.deepcopy(dict(config))
        self._family = family
        self._counts: dict[str, _Count] = {}
        self._heads: dict[tuple[str, str], Array] = {}
        self.problems: list[str] = []

    def run(
        self, tensors: Mapping[str, Recovered], layers: Mapping[str, list[int]],
        num_layers: Mapping[str, int],
    ) -> dict[str, Any]:  # fmt: skip
        """Returns the new config; `problems` says what is wrong with it.

        Args:
            tensors: Tensors that are kept, by their old names in the checkpoint.
            layers: Indices of the kept layers, by list.
            num_layers: Old numbers of layers, by list.
        """
        for name, item in tensors.items():
            self._tensor(name, item)
        for key, count in self._counts.items():
            if len(count.new) > 1:
                each = ", ".join(f"{size} in `{name}`" for size, name in count.new.items())
                self.problems.append(f"`{key}` would be {each}, and the config has one value")
            elif count.value != count.old:
                self._set(key, count.value)
        if not self.problems:
            for heads in self._family.heads:
                self._check_heads(heads)
            self._check_groups()
        self._layers(layers, num_layers)
        return self._config

    def _tensor(self, name: str, item: Recovered) -> None:
        axes = self._family.axes_of(name)
        shape, full = item.shape, item.full
        if axes is None or len(axes) != len(full):
            if shape != full:
                self.problems.append(
                    f"`{name}` is {list(shape)}, was {list(full)}, and the table of this family "
                    "does not say which config values its axes are"
                )
            return
        for axis, (label, kept) in enumerate(zip(axes, item.kept, strict=True)):
            if label.key is None:
                if len(kept) < full[axis]:
                    self.problems.append(
                        f"axis {axis} of `{name}` has {len(kept)} of {full[axis]} positions, "
                        "and no config value states it"
                    )
                continue
            self._axis(name, axis, label, item)

    def _axis(self, name: str, axis: int, label: Axis, item: Recovered) -> None:
        key, size = str(label.key), item.full[axis]
        old, kept = size, item.kept[axis]
        new = len(kept)
        if label.is_product:
            old = self._stated(key)
            if old <= 0 or size % (old * label.fixed):
                self.problems.append(
                    f"axis {axis} of `{name}` has {size} positions and the config says `{key}` = "
                    f"{old}"
                )
                return
            heads = _whole_heads(kept, size, old, label.fixed, is_placed=item.is_placed)
            if isinstance(heads, str):
                self.problems.append(f"axis {axis} of `{name}` keeps {heads} of `{key}`")
                return
            new = len(heads)
            if item.is_placed:
                self._heads[name, key] = heads
        self._counts.setdefault(key, _Count(old)).new.setdefault(new, name)

    def _stated(self, key: str) -> int:
        """Returns a value of the old config; heads of keys are as many as others by default."""
        value = _get(self._old, key)
        if value is None:
            value = next(
                (_get(self._old, h.count) for h in self._family.heads if h.groups == key), None
            )
        return value if isinstance(value, int) else 0

    def _check_heads(self, heads: Heads) -> None:
        width, count = self._counts.get(heads.width), self._counts.get(heads.count)
        if width is None or count is None:
            return
        if width.value == width.old and count.value == count.old:
            return
        if heads.size is not None:
            size = _get(self._old, heads.size) or width.old // count.old
            self._set(heads.size, size)
            return
        size = width.old // count.old
        if width.value != size * count.value:
            self.problems.append(
                f"`{heads.width}` would be {width.value} with {count.value} heads of {size}: in "
                f"this family it is {heads.count} times the size of a head, "
                f"{size * count.value}"
            )

    def _check_groups(self) -> None:
        """Checks that every head still reads the keys that it read before."""
        for heads in self._family.heads:
            groups = self._counts.get(heads.groups or "")
            count = self._counts.get(heads.count)
            if groups is None or count is None or heads.groups is None:
                continue
            if count.value % groups.value:
                self.problems.append(
                    f"{count.value} heads cannot share {groups.value} of keys and values evenly"
                )
                continue
            for (name, key), kept in self._heads.items():
                other = self._heads.get((name.replace("q_proj", "k_proj"), heads.groups))
                if key != heads.count or other is None or "q_proj" not in name:
                    continue
                owners = kept // (count.old // groups.old)
                if not np.array_equal(owners, np.repeat(other, count.value // groups.value)):
                    self.problems.append(
                        f"the heads {kept.tolist()} of `{name}` read keys of {owners.tolist()}, "
                        f"and those kept are {other.tolist()}: groups would be mixed"
                    )

    def _layers(self, layers: Mapping[str, list[int]], num_layers: Mapping[str, int]) -> None:
        if all(len(kept) == num_layers[stem] for stem, kept in layers.items()):
            return
        for stem, kept in layers.items():
            self._set(self._family.layers[stem], len(kept))
        (stem, kept), *more = layers.items()
        for key in self._family.per_layer:
            entries = _get(self._config, key)
            if not more and isinstance(entries, list) and len(entries) == num_layers[stem]:
                self._set(key, [entries[i] for i in kept])

    def _set(self, key: str, value: Any) -> None:
        *parents, last = key.split(".")
        target = self._config
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _whole_heads(kept: Array, size: int, count: int, fixed: int, *, is_placed: bool) -> Array | str:
    """Returns the kept heads of an axis, or what it keeps when that is no set of whole heads."""
    width = size // (count * fixed)
    if not is_placed:
        heads, rest = divmod(len(kept), width * fixed)
        return f"{len(kept)} positions, no multiple of the {width}" if rest else np.arange(heads)
    rows = np.zeros(size, np.bool_)
    rows[kept] = True
    table = rows.reshape(fixed, count, width)
    whole = table.all(axis=(0, 2))
    if int(whole.sum()) * width * fixed != len(kept):
        return f"{len(kept)} positions that are not whole heads of {width}"
    return np.flatnonzero(whole)
