"""What passes measure with: samples of `--calibrate`, and gradients where PyTorch is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.ir.errors import UnsupportedError
from regraft.ir.module import Module
from regraft.passes.protocol import GradientSource, Samples
from regraft.samples import read_samples


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


def read_calibration(path: Path) -> list[dict[str, Any]]:
    """Reads the data of `--calibrate`: a `.npz` file or a folder of them.

    Raises:
        InputError: When it cannot be read.
        UnsupportedError: For texts and folders of images, which no tokenizer or resizing is for.
    """
    is_arrays = path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npz")))
    if path.exists() and not is_arrays:
        raise UnsupportedError(
            f"`{path}` holds no `.npz` files: texts and images are not read yet",
            hint="prepare them as the model takes them: `numpy.savez(path, input_name=array, …)`",
        )
    return read_samples(path)
