"""Pauses Python's cyclic garbage collector where only long-lived objects are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses the collector inside the block, unless someone has done so already.

    Building or rewriting a graph makes objects that live on, and each full collection walks all of
    them again: a load of 100,000 nodes takes twice as long, and its time is no longer linear.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
