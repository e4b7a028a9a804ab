"""What nothing can be quantized with: numbers that no scale holds, options that name nothing."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.module import Module
from regraft.ir.ops import conv
from regraft.passes.pipeline import suggest
from regraft.passes.protocol import Skip
from regraft.passes.quantization.convolution_codes import convolution_name
from regraft.passes.quantization.sites import FLOATS, linears, tables

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62
_MAX_NAMED = 12
_MAX_REASONS = 8


def check_finite(name: str, array: Array) -> None:
    """Refuses a weight that holds NaN or Inf.

    Raises:
        UsageError: Naming the weight.
    """
    # NaN and infinities show in the least or the largest number: no array of flags is made
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise UsageError(
            f"weight `{name}` holds NaN or Inf: no scale holds it",
            hint=f"mend the checkpoint, or leave the weight in float: `keep={name}`",
        )


def check_weights(module: Module, kept: Collection[str] = ()) -> None:
    """Refuses a module one of whose weights holds NaN or Inf, one weight in memory at a time.

    Samples that run through such a weight would be blamed for it.

    Args:
        module: The module.
        kept: Globs of what stays in float.

    Raises:
        UsageError: Naming the weight.
    """
    found = {site.name: site.weight for site in linears(module.graph, FLOATS)}
    found |= {site.name: site.table for site in tables(module.graph, FLOATS)}
    for node in module.graph:
        weight = node.inputs[1] if node.op is conv.conv else None
        if weight is not None:
            found[convolution_name(node)] = weight
    for name, value in found.items():
        array = None if is_kept(name, kept) else constant_of(value, _ANY_SIZE)
        if array is not None:
            check_finite(name, array)


def is_kept(name: str, patterns: Iterable[str]) -> bool:
    """Whether a weight is named by one of the globs."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_keep(who: str, module: Module, patterns: Sequence[str]) -> None:
    """Refuses globs that name no weight: what they were meant for would be quantized silently.

    Args:
        who: The pass, for the error.
        module: The module.
        patterns: Globs of what stays in float.

    Raises:
        UsageError: Naming the glob.
    """
    if not patterns:
        return
    names = {site.name for site in linears(module.graph, FLOATS)}
    names |= {site.name for site in tables(module.graph, FLOATS)}
    names |= {convolution_name(node) for node in module.graph if node.op is conv.conv}
    for pattern in patterns:
        if not fnmatch.filter({*names, *module.weights}, pattern):
            raise UsageError(
                f"pass `{who}`, option `keep`: `{pattern}` names no weight",
                hint=_hint(pattern, names),
            )


def _hint(pattern: str, names: Collection[str]) -> str:
    """Returns the name that is near, or some of those there are."""
    if difflib.get_close_matches(pattern, names, n=1) or len(names) <= _MAX_NAMED:
        return suggest(pattern, names)
    some = ", ".join(sorted(names)[:_MAX_NAMED])
    return f"known: {some} and {len(names) - _MAX_NAMED} more"


def nothing_to_quantize(who: str, left: Sequence[Skip], num_quantized: int) -> TargetError:
    """Returns the error that says why nothing could be quantized.

    Args:
        who: The pass.
        left: Products that stay in float, each with the reason.
        num_quantized: Products that are by integer codes already.
    """
    reasons = "".join(f"\n  `{skip.node}`: {skip.reason}" for skip in left[:_MAX_REASONS])
    more = f"\n  and {len(left) - _MAX_REASONS} more" if len(left) > _MAX_REASONS else ""
    found = "products that it cannot take:" if left else "no product by a constant matrix"
    if num_quantized:
        found = f"{num_quantized} products are by integer codes already{':' if left else ''}"
    return TargetError(
        f"pass `{who}`: there is nothing to quantize, {found}{reasons}{more}",
        hint="leave the pass out, or see docs/quantization.md for what it takes",
    )
