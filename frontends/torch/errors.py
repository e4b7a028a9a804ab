"""What an export fails of, in terms of the user's own code."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from regraft.ir.errors import InputError, RegraftError, UnsupportedError

_HERE = str(Path(__file__).parent).replace("\\", "/")
_STDLIB = sysconfig.get_paths()["stdlib"]
_SUGGESTED = re.compile(r"Suggested fixes:\n((?:  .*\n?)+)")
_SIZE = re.compile(r"L((?:\['?\w+'?\])+)\.size\(\)\[(\d+)\]")
_STATIC = re.compile(
    r"static shape of (\d+) for dimension inputs((?:\['[^']*'\]|\[\d+\])+)\.shape\[(\d+)\]"
)
_STEP = re.compile(r"\w+")

_FREE = "drop the axis from dynamic_shapes, or make the code take any size there"
_OF_A_CACHE = (
    "a cache whose length is asked for cannot be free: one that drops what lies beyond a sliding "
    "window is given as a `DynamicCache()` made without a config, which keeps all tokens, and the "
    "mask hides them; or leave the axis static"
)
_VIOLATED = re.compile(r"^  - (.*?)(?: If you're using|$)", re.MULTILINE)


def user_line(trace: TracebackType | None) -> str | None:
    """Returns `file:line: code` of the innermost frame of the user's code, or None.

    Where the user wrote none of it, that of a module or function of `torch.nn`.
    """
    found = layer = None
    for frame in traceback.extract_tb(trace):
        path = frame.filename.replace("\\", "/")
        line = f"{frame.filename}:{frame.lineno}: `{frame.line}`"
        if "/site-packages/torch/nn/" in path and not path.endswith("/module.py"):
            layer = line
        is_ours = path.startswith(_HERE)
        is_stdlib = path.startswith(_STDLIB) and "/site-packages/" not in path
        if path.startswith("<") or "/site-packages/torch/" in path or is_ours or is_stdlib:
            continue
        found, layer = line, None
    if found is None or layer is None:
        return found or layer
    return f"{found} (in {layer})"


def explain_export_error(error: Exception, module: torch.nn.Module) -> RegraftError:
    """Returns the error that a user sees for one that `torch.export` raised."""
    kind, text = type(error).__name__, str(error)
    line = user_line(error.__traceback__)
    where = "" if line is None else f" at {line}"
    name = type(module).__name__
    if kind == "GuardOnDataDependentSymNode" or "data-dependent" in text:
        return InputError(
            f"`{name}` decides by the content of a tensor{where}: {_first_line(text)}",
            hint="write it with `torch.where` or `torch.cond`, or state the fact with "
            "`torch._check(…)`; a decision that inputs never change can be a constructor argument",
        )
    if "Constraints violated" in text or "user-specified" in text:
        return InputError(f"`{name}`: {_violations(text)}", hint=_range_hint(text))
    if "no fake impl registered" in text or kind == "UnsupportedOperatorException":
        return UnsupportedError(
            f"`{name}` calls a custom operator{where}: {_first_line(text)}",
            hint="register its shapes (`register_fake`), and give its importer in "
            "`Plugin(torch_importers=…)`",
        )
    return InputError(
        f"`{name}` cannot be exported{where}: {kind}: {_first_line(text)}",
        hint="check that it runs on the example arguments; `torch.export.draft_export` shows "
        "every place that stops the export",
    )


def no_data_error(names: Sequence[str]) -> InputError:
    """Returns the error for weights on the meta device, or fake ones."""
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    return InputError(
        f"`{names[0]}` is a tensor without data (meta or fake){more}",
        hint="load the weights before the capture: `model.to_empty` and `load_state_dict`",
    )


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "no message"


def _violations(text: str) -> str:
    fixed = [f"{_axis(path, axis)} is always {size}" for size, path, axis in _STATIC.findall(text)]
    if fixed:
        return f"the export fixed sizes that were to be dynamic: {'; '.join(fixed)}"
    found = dict.fromkeys(_VIOLATED.findall(text)) or {_first_line(text): None}
    return "; ".join(_SIZE.sub(lambda m: _axis(m[1], m[2]), item.rstrip(".")) for item in found)


def _axis(path: str, axis: str) -> str:
    """Returns how a user calls an axis: of `past_key_values.key_cache.0`, not of its indices."""
    return f"axis {axis} of `{'.'.join(_STEP.findall(path))}`"


def _range_hint(text: str) -> str:
    suggested = _SUGGESTED.search(text)
    if suggested is None:
        is_cache = any("key_cache" in path for _, path, _ in _STATIC.findall(text))
        return _OF_A_CACHE if is_cache else _FREE
    fixes = ", ".join(line.strip() for line in suggested[1].strip().splitlines())
    return f"the code allows only: {fixes}"
