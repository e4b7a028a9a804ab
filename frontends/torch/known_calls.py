"""Overloads that the walk over an export knows by name, beside those with importers."""

from __future__ import annotations

DROPPED = frozenset(
    {
        "aten._assert_scalar.default",
        "aten._assert_async.default",
        "aten._assert_async.msg",
        "aten._assert_tensor_metadata.default",
        "aten._linalg_check_errors.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)
"""Assertions: what they state about sizes is in the ranges of the symbols, or fails anyway."""

NO_WRITES = frozenset({"aten.detach_.default", "aten.requires_grad_.default"})
"""In-place calls that change no element."""

CASTS = frozenset(
    {"aten.to.dtype", "aten.to.other", "aten.to.dtype_layout", "aten._to_copy.default",
     "aten.type_as.default"}
)  # fmt: skip
"""Calls that state the element type of their result: autocast leaves their operands alone."""

SCALAR_READS = frozenset({"aten.item.default", "aten._local_scalar_dense.default"})
"""Calls that give an element as a Python number."""
