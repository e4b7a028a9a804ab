"""What an export fails of, in terms of the user's own code."""

from __future__ import annotations

import traceback

import torch

from regraft.ir.errors import InputError, RegraftError


def user_line(error: BaseException) -> str | None:
    """Returns `file:line: code` of the innermost frame that is not PyTorch's own."""
    found = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = frame.filename.replace("\\", "/")
        if path.startswith("<") or "/torch/" in path or "/regraft/" in path:
            continue
        if "/frontends/torch/" in path or path.endswith("/contextlib.py"):
            continue
        found = f"{frame.filename}:{frame.lineno}: {frame.line}"
    return found


def explain_export_error(error: Exception, module: torch.nn.Module) -> RegraftError:
    """Returns the error that a user sees for one that `torch.export` raised."""
    name, text = type(error).__name__, str(error)
    line = user_line(error)
    where = "" if line is None else f" at {line}"
    first = text.strip().splitlines()[0] if text.strip() else name
    return InputError(
        f"`{type(module).__name__}` cannot be exported{where}: {name}: {first}",
        hint="`torch.export.draft_export` shows every place that stops the export",
    )
