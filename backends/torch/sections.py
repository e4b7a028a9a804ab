"""Repeated parts of a model in `forward`: `layer = self.encoder.layer[3]`, then `layer.query`."""

from __future__ import annotations

import re

from regraft.backends.torch.lines import Lines
from regraft.backends.torch.naming import Variables, identifier
from regraft.backends.torch.weight_source import WeightSource, attribute

_SECTION = re.compile(r"^(.*?\.?)(\w+)\.(\d+)(?=\.)")


class Sections:
    """The variable of the part that is written at present, one at a time.

    Args:
        lines: The lines of `forward`, to which the assignment of a new part is added.
        variables: Where the variable comes from.
        weights: What a part holds: small ones need no variable.
    """

    def __init__(self, lines: Lines, variables: Variables, weights: WeightSource) -> None:
        self._lines = lines
        self._variables = variables
        self._weights = weights
        self._current: tuple[str, str] | None = None  # path of a part, its variable
        self._is_read = False  # by the node under emission

    def end_node(self) -> None:
        """Allows another part: the expressions of a node are all written."""
        self._is_read = False

    def shortened(self, expression: str) -> str:
        """Returns an attribute of a repeated part by the variable of the part."""
        path = expression.removeprefix("self.")
        match = _SECTION.match(path.replace("[", ".").replace("]", ""))
        if match is None or not expression.startswith("self.") or match[1].count(".") > 8:
            return expression
        whole = attribute(f"{match[1]}{match[2]}.{match[3]}")
        if not expression.startswith(whole):
            return expression
        current = self._current
        if current is None or current[0] != whole:
            if self._is_read:  # by the expression that this one becomes a part of
                return expression
            path = f"{match[1]}{match[2]}.{match[3]}"
            if self._lines.depth or not self._weights.is_large(path):
                return expression
            current = self._begin(whole, identifier(match[2]).lower())
        self._is_read = True
        return current[1] + expression.removeprefix(whole)

    def _begin(self, whole: str, hint: str) -> tuple[str, str]:
        if self._current is not None:
            self._variables.release(self._current[1])
        name = self._variables.take(hint.removesuffix("s") or hint)
        self._current = (whole, name)
        if self._lines.is_begun:
            self._lines.add("")
        self._lines.add(f"{name} = {whole}", name)
        return self._current
