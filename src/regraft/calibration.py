"""What passes measure with: samples of `--calibrate`, and gradients where PyTorch is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.ir.errors import InputError
from regraft.ir.module import Module
from regraft.metrics import EmbeddingMetric, Metric
from regraft.passes.protocol import GradientSource, Samples
from regraft.passes.quality.measure import MASK
from regraft.quality import folders_of, open_data
from regraft.quality_data import input_sizes
from regraft.samples import read_samples
from regraft.sources import Source

MAX_ITEMS = 1024
"""Lines of a text, or images, that are read."""


@dataclass(frozen=True, slots=True)
class LateGradients:
    """A `GradientSource` that imports PyTorch when it is first asked, which takes a second."""

    def gradients(
        self, module: Module, samples: Samples, weights: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Iterates over the samples; yields the gradient of the mean square of the outputs."""
        from regraft.backends.torch.executor import TorchGradients

        return TorchGradients().gradients(module, samples, weights)


def gradient_source() -> GradientSource | None:
    """Returns the source of gradients, None where PyTorch is not installed."""
    return None if importlib.util.find_spec("torch") is None else LateGradients()


def read_calibration(
    path: Path, source: Source, tokenizer: Path | None = None
) -> list[dict[str, Any]]:
    """Reads the data of `--calibrate`.

    Args:
        path: A `.npz` file or a folder of them; a text, each line one sample (windows of tokens for
            a model without an attention mask); or a folder of images.
        source: The model that takes it, with its tokenizer or image processor beside it.
        tokenizer: A `tokenizer.json`, or a folder with one; default: the one beside the source.

    Raises:
        InputError: When it cannot be read, or there is no tokenizer for a text.
    """
    is_arrays = path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npz")))
    if is_arrays or not path.exists():
        return read_samples(path)
    sizes = input_sizes(source.module)
    named = None if tokenizer is None else str(tokenizer)
    # one line at a time: tokens that fill up a batch are no data
    options: Metric = (
        EmbeddingMetric(tokenizer=named, batch=1, limit=MAX_ITEMS)
        if MASK in sizes
        else Metric(tokenizer=named, batch=1, limit=MAX_ITEMS)
    )
    hint = "name one, `--tokenizer FOLDER`, or give `.npz` files"
    data, _ = open_data(options, path, source.module, folders_of(source), tokenizer_hint=hint)
    samples = [{name: array for name, array in item.items() if name in sizes} for item in data]
    if not samples:
        raise InputError(f"`{path}` holds nothing to calibrate on", hint="one text per line")
    return samples
