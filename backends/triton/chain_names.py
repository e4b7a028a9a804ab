"""Names in generated kernels: what a tensor is called, and which names sources use themselves."""

from __future__ import annotations

import builtins
from collections.abc import Iterable

from regraft.backends.torch.naming import identifier
from regraft.ir.graph import Node, Value
from regraft.ir.ops import norm

RESERVED = frozenset({
    "row", "rows", "columns", "column", "mask", "start", "shape", "tl", "torch",
    "triton", "num_rows", "N", "config", "block", "grid", "operands", "tiles", "base", "found",
    "exact_tanh", "normal_cdf", "tanh_gate", "rows_of", "rows_together", "size_between", "height",
    "operator", "block_of", "config_for", "ctx", "gradients", "m", "n", "total", "tile",
    "programs", "summed", "share", "most", "num_processors", "gradients_by_kernel",
    "layout_of", "in_layout_of", "elements_below", "made", "channel", "channels", "plane",
    "groups", "first", "begin", "place", "promoted",
})  # fmt: skip

_BUILTINS = frozenset(dir(builtins)) - {"input"}
"""Sources call some of them: `min`, `range`."""


def variable_of(hint: str) -> str:
    """Returns a variable's name that hides none of Python's: `max_value`."""
    name = identifier(hint).lower()
    return f"{name}_value" if name in _BUILTINS else name


def roles_of(nodes: Iterable[Node]) -> dict[Value, str]:
    """Returns what operands are for nodes: norms of several layers may share a kernel."""
    return {
        value: role
        for node in nodes
        if node.op in (norm.layer_norm, norm.rms_norm, norm.group_norm)
        for value, role in zip(node.inputs[1:], ("norm_weight", "norm_bias"), strict=False)
        if value is not None
    }
