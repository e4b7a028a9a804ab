"""Where a call comes from: module path and the user's source line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from regraft.ir.graph import Loc

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def source_line(stack_trace: str | None) -> str | None:
    """Returns `file:line` of the innermost frame that is not PyTorch's own, or None."""
    if not stack_trace:
        return None
    found = None
    for path, line in _FRAME.findall(stack_trace):
        if not path.startswith(("<", "torch/")) and "/site-packages/torch/" not in path:
            found = f"{path}:{line}"
    return found


def module_path(stack: Mapping[str, Any] | None) -> str | None:
    """Returns the dotted path of the innermost module of an `nn_module_stack`, or None."""
    if not stack:
        return None
    path = list(stack.values())[-1][0]
    return path if isinstance(path, str) and not path.startswith("_empty_nn_module") else None


class Locations:
    """Origins of calls; those of one line in one module share one tuple."""

    def __init__(self) -> None:
        self._lines: dict[str, str | None] = {}
        self._locs: dict[tuple[str | None, str | None], Loc] = {}

    def of(self, meta: Mapping[str, Any]) -> Loc:
        """Returns the origins of a call: `torch:encoder.layer.0`, `file.py:12`."""
        path, trace = module_path(meta.get("nn_module_stack")), meta.get("stack_trace")
        line = None
        if trace is not None:
            if trace not in self._lines:
                self._lines[trace] = source_line(trace)
            line = self._lines[trace]
        found = self._locs.get((path, line))
        if found is None:
            items = (f"torch:{path}" if path else None, line)
            found = tuple(item for item in items if item is not None)
            self._locs[path, line] = found
        return found
