"""How a family's config values lie on the axes of its checkpoint tensors.

The notation of one tensor names an item per axis: a config key (`hidden_size`; nested ones with a
dot, `text_config.hidden_size`), `_` for an axis that no config value states, or a product such as
`(num_attention_heads .)`, where `.` is the size of a head and a number is a fixed count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

REST = "."
FREE = "_"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor.

    Args:
        factors: Config keys, numbers and `.`, outermost first; empty when no value states it.
    """

    factors: tuple[str | int, ...]

    @property
    def key(self) -> str | None:
        """The config key on the axis, or None."""
        return next((item for item in self.factors if isinstance(item, str) and item != REST), None)

    @property
    def fixed(self) -> int:
        """The fixed count in front of the key."""
        return next((item for item in self.factors if isinstance(item, int)), 1)

    @property
    def is_product(self) -> bool:
        """Whether every position of the key is a row of positions, a head."""
        return len(self.factors) > 1


@cache
def parse_axes(notation: str) -> tuple[Axis, ...]:
    """Returns the axes of a notation: `(num_heads .) d_model`."""
    axes = []
    for item in re.findall(r"\([^)]*\)|\S+", notation):
        names = item.strip("()").split()
        factors = tuple(int(name) if name.isdigit() else name for name in names)
        axes.append(Axis(() if names == [FREE] else factors))
    return tuple(axes)


@dataclass(frozen=True, slots=True)
class Heads:
    """How widths and heads of one stack of layers belong together.

    Args:
        width: Key of the width of the residual stream.
        count: Key of the number of heads.
        size: Key of the size of a head; None where it always is width / count.
        groups: Key of the number of heads of keys and values, where there are fewer.
    """

    width: str
    count: str
    size: str | None = None
    groups: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """A family of `transformers`.

    Args:
        axes: Notation by the end of a tensor's name; `*` stands for a number.
        layers: Key of the number of layers by the name of their list.
        heads: Its stacks.
        per_layer: Keys of lists with one entry per layer.
    """

    axes: Mapping[str, str]
    layers: Mapping[str, str]
    heads: Sequence[Heads]
    per_layer: Sequence[str] = ()

    def axes_of(self, name: str) -> tuple[Axis, ...] | None:
        """Returns the axes of a tensor, None for one that the table does not have."""
        for pattern, notation in self.axes.items():
            if _matches(pattern, name):
                return parse_axes(notation)
        return None

    def layer_of(self, name: str) -> tuple[str, int, int] | None:
        """Returns list, index and where the index ends in the name of a tensor of a layer."""
        for stem in self.layers:
            found = _layer_pattern(stem).search(name)
            if found is not None:
                return stem, int(found[1]), found.start(1)
        return None


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(?:^|\.)" + re.escape(pattern).replace(r"\*", r"\d+") + "$")


def _matches(pattern: str, name: str) -> bool:
    return _pattern(pattern).search(name) is not None


@cache
def _layer_pattern(stem: str) -> re.Pattern[str]:
    return re.compile(r"(?:^|\.)" + re.escape(stem) + r"\.(\d+)\.")


def linear(name: str, out: str, into: str) -> dict[str, str]:
    """Returns the rows of a linear layer with bias: `weight[out, into]`, `bias[out]`."""
    return {f"{name}.weight": f"{out} {into}", f"{name}.bias": out}


def norm(name: str, width: str) -> dict[str, str]:
    """Returns the rows of a norm."""
    return {f"{name}.weight": width, f"{name}.bias": width}


def merged(*parts: Mapping[str, str]) -> dict[str, str]:
    """Returns one table of several."""
    return {name: notation for part in parts for name, notation in part.items()}
