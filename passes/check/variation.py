"""How much the outputs of a source depend on its samples: what a measured loss is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.passes.check.compare import distance

_LITTLE = 1e-3
"""Outputs that vary by less than this part of their size are nearly constant on the samples."""


class Variation:
    """Collects a source's outputs over samples; keeps one of each shape."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, tuple[int, ...]], Any] = {}
        self.largest: dict[str, float] = {}
        self.varies: dict[str, float] = {}

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Adds the float outputs of one sample."""
        for name, output in outputs.items():
            if not isinstance(output, np.ndarray) or output.dtype.kind != "f" or not output.size:
                continue
            first = self.first.setdefault((name, output.shape), output)
            self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(output).max()))
            if first is not output:
                self.varies[name] = max(self.varies.get(name, 0.0), distance(first, output))

    def note(self) -> str:
        """Says that differences mean little, where all outputs hardly vary; else nothing."""
        parts = {
            name: varies / self.largest[name]
            for name, varies in self.varies.items()
            if self.largest[name] > 0
        }
        if not parts or max(parts.values()) > _LITTLE:
            return ""
        name, part = max(parts.items(), key=lambda item: item[1])
        return (
            f"says little about quality: the source's own outputs hardly vary over these samples "
            f"(`{name}` by {part:.1g} of its size); give real ones with --inputs"
        )
