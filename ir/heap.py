"""Memory that was freed, returned to the system."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """Returns freed memory to the system, where the C library keeps it for later (glibc).

    Arrays of some megabytes that come and go leave gaps, which no later array may fit: of a 7B
    model gigabytes. Cost: milliseconds.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries keep no gaps, or have no call for it
        trim(0)
