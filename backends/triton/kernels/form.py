"""What one compilation of a kernel ahead of time is."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COUNTS = (
    "num_rows", "M", "q_heads", "k_heads", "S", "T", "H", "group", "key_heads",
    "experts", "offset", "left", "right", "span", "splits",
    "mask_batch_stride", "mask_head_stride", "mask_row_stride",
)  # fmt: skip
"""Arguments that are counts: no kernel takes it for granted that 16 divides them."""

_PLACES = re.compile(r"_(inner|size)\d*")


def is_count(name: str) -> bool:
    """Whether an argument is a count, or says where a generated kernel finds rows."""
    return name in COUNTS or _PLACES.search(name) is not None


class Bound(enum.Enum):
    """What limits a kernel."""

    MEMORY = "memory"
    MATMUL = "matmul"


@dataclass(frozen=True, slots=True)
class Form:
    """One compilation of a kernel.

    Args:
        name: Unique.
        kernel: The kernel.
        dtype: Triton's name of the element type (`fp32`, `fp16`, `bf16`).
        constants: Values of its constexprs, and of arguments that are 1 and thereby specialized.
        bound: What limits it.
        warps: Warps of a program.
        stages: Depth of the software pipeline.
        wide: Arguments that are pointers to f32 whatever `dtype` is.
        floats: Arguments that are f32 scalars.
        wholes: Arguments that are pointers to i64.
        bytes: Arguments that are pointers to u8.
        signed_bytes: Arguments that are pointers to i8.
        hip: Constants, and `warps`, that are others on GPUs of AMD.
        unaligned: Integer arguments that are not multiples of 16.
    """

    name: str
    kernel: Any
    dtype: str
    constants: Mapping[str, object]
    bound: Bound
    warps: int
    stages: int = 3
    wide: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    wholes: tuple[str, ...] = ()
    bytes: tuple[str, ...] = ()
    signed_bytes: tuple[str, ...] = ()
    hip: Mapping[str, int] = field(default_factory=dict)
    unaligned: tuple[str, ...] = COUNTS
