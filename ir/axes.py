"""Axis rules: how the axes of an operator's operands and results correspond, stated once.

The notation (einops-like), one term per operand slot, then `->`, then one term per result:

```
matmul     "*b m ~k, *b ~k n -> *b m n"
conv       "n (g ~i) *s!, (g o*) ~i *k!, (g o*) -> n (g o*) *t!"
layer_norm "*b c!, c!, c! -> *b c!"
```

- `name`   a *pass* label: kept in the result; dropping a position drops it everywhere it stands.
- `~name`  a *sum* label: contracted; dropping a position equals zeroing it. Never inferred.
           It may stand in a result as well (a recurrent state), where its positions are dropped.
- `name!`  a *fixed* label: windows, kernel taps, causal or sorted axes, non-sum reductions. It
           still ties the axes that share it, but dropping a position changes the others.
- `*name`  zero or more axes, aligned from the right across terms. Write `*name!` and `~*name`
           for fixed and summed ones.
- `(g o)`  a compound axis, outer factor first: the same positions of `o` in every block `g`;
           `(g o*)` equal counts per block, positions free.
- `name?`  an axis that may have size 1 and be broadcast; size 1 ties nothing. Labels of a star that
           stands in several terms always may.
- `1`      an axis of size 1.  `.`  an operand with no axis information: all its axes are pinned.
- `name@half`, `name@interleaved`: the axis holds pairs (rotary embedding, gated units).

A term of an absent operand is skipped. Bound to a node, stars become `name0, name1, …` and every
label gets a size. An attribute that states sizes (groups, heads, a target shape) is listed in the
spec's `counts` with a term of its own, `{"groups": "g"}`: it binds like one more operand. The term
`->` stands for the axes of the first result, `{"shape": "->"}`.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Role(enum.Enum):
    """What happens to a label's positions."""

    PASS = "pass"
    SUM = "sum"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Factor:
    """One label inside an axis.

    Args:
        name: The label.
        role: Its role; a label has one role in the whole rule.
        free: In a compound: equal counts per outer block, positions free.
        maybe_one: The axis may have size 1 and be broadcast.
        pairs: `half`, `interleaved` or None.
    """

    name: str
    role: Role
    free: bool = False
    maybe_one: bool = False
    pairs: str | None = None


@dataclass(frozen=True, slots=True)
class Star:
    """Zero or more axes, aligned from the right with the same star in other terms."""

    name: str
    role: Role
    maybe_one: bool = True


Axis = tuple[Factor, ...]  # () is an axis of size 1
Term = tuple["Axis | Star", ...]


@dataclass(frozen=True, slots=True)
class AxisRule:
    """A parsed rule; a None term pins the operand or result."""

    operands: tuple[Term | None, ...]
    results: tuple[Term | None, ...]

    def roles(self) -> dict[str, Role]:
        """Returns the role of every label."""
        return {
            factor.name: factor.role
            for term in (*self.operands, *self.results)
            for axis in term or ()
            for factor in ((axis,) if isinstance(axis, Star) else axis)
        }

    @property
    def has_fixed(self) -> bool:
        """Whether any label is fixed."""
        return Role.FIXED in self.roles().values()


_TOKEN = re.compile(
    r"\s*(?:(?P<star>~?\*\w+!?\??)|(?P<label>~?[A-Za-z_]\w*\*?!?\??(?:@\w+)?)|(?P<sym>[().]|1))"
)
_LABEL = re.compile(r"(~?)(\*?)(\w+?)(\*?)(!?)(\??)(?:@(\w+))?$")


@lru_cache(maxsize=4096)
def parse_rule(text: str) -> AxisRule:
    """Parses the notation of the module docstring.

    Raises:
        ValueError: When the text is no rule, or a label has two roles.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"axis rule `{text}` has no `->`")
    operands = tuple(parse_term(part) for part in left.split(","))
    results = tuple(parse_term(part) for part in right.split(","))
    seen: dict[str, Role] = {}
    for term in (*operands, *results):
        for axis in term or ():
            for factor in (axis,) if isinstance(axis, Star) else axis:
                if seen.setdefault(factor.name, factor.role) is not factor.role:
                    raise ValueError(f"axis rule `{text}`: label `{factor.name}` has two roles")
    return AxisRule(operands, results)


@lru_cache(maxsize=4096)
def parse_term(text: str) -> Term | None:
    """Parses one term, `n (g o*) *t!`; None for `.`, an operand without axis information."""
    axes: list[Axis | Star] = []
    compound: list[Factor] | None = None
    text = text.strip()
    if text == ".":
        return None
    pos = 0
    while pos < len(text):
        match = _TOKEN.match(text, pos)
        if match is None:
            raise ValueError(f"axis rule term `{text}`: unexpected `{text[pos:]}`")
        pos = match.end()
        symbol = match["sym"]
        if symbol == "(":
            compound = []
        elif symbol == ")":
            axes.append(tuple(compound or ()))
            compound = None
        elif symbol == "1":
            axes.append(())
        elif match["star"]:
            tilde, _, name, _, fixed, _, _ = _label(match["star"])
            axes.append(Star(name, _role(tilde, fixed)))
        else:
            tilde, _, name, free, fixed, maybe, pairs = _label(match["label"])
            factor = Factor(name, _role(tilde, fixed), bool(free), bool(maybe), pairs or None)
            if compound is None:
                axes.append((factor,))
            else:
                compound.append(factor)
    return tuple(axes)


def _label(token: str) -> tuple[str, ...]:
    match = _LABEL.match(token)
    if match is None:
        raise ValueError(f"axis label `{token}` is malformed")
    return match.groups(default="")


def _role(tilde: str, fixed: str) -> Role:
    if tilde and fixed:
        raise ValueError("a label cannot be both summed (`~`) and fixed (`!`)")
    return Role.SUM if tilde else Role.FIXED if fixed else Role.PASS
