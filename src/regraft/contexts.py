"""What passes may use when regraft runs them, made in one place for every way of running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from regraft.activations import Activations
from regraft.backends.onnx import PROFILES
from regraft.backends.onnx.legalize import legalizers
from regraft.benching import OrtLatency
from regraft.calibration import gradient_source
from regraft.passes.check.samples import Sample
from regraft.passes.protocol import Context, Samples
from regraft.passes.recovery.data import Data
from regraft.plugins import Extensions
from regraft.tables import user_tables
from regraft.training import trainer_source

Inputs = Mapping[str, Any]


class Probes(Sequence[Inputs]):
    """Inputs of generated samples, which are made when a pass first looks at them.

    What a pass finds on them must not depend on whether outputs are checked.

    Args:
        make: Makes the samples, of the module before any pass.
    """

    def __init__(self, make: Callable[[], Sequence[Sample]]) -> None:
        self._make = make
        self._made: list[Inputs] | None = None

    def _inputs(self) -> list[Inputs]:
        if self._made is None:
            self._made = [sample.inputs for sample in self._make()]
        return self._made

    def __len__(self) -> int:
        return len(self._inputs())

    @overload
    def __getitem__(self, idx: int) -> Inputs: ...
    @overload
    def __getitem__(self, idx: slice) -> Sequence[Inputs]: ...
    def __getitem__(self, idx: int | slice) -> Inputs | Sequence[Inputs]:
        return self._inputs()[idx]


def make_context(
    extensions: Extensions,
    *,
    samples: Samples,
    probes: Samples,
    target: str = "ort-cpu",
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    checkpoints: Path | None = None,
    training: Data | None = None,
    **rest: Any,
) -> Context:
    """Returns a context with everything that regraft's backends provide.

    Args:
        extensions: Passes and operators, those of plugins among them.
        samples: The user's samples.
        probes: Generated samples, for when there are none of the user's.
        target: Where the result will run.
        dims: Sizes that are expected at run time, by symbol.
        seed: Seed of everything random.
        checkpoints: Folder of checkpoints of training, or None.
        training: Batches that passes train on; default: the samples.
        rest: Further fields of `Context`.
    """
    sizes = dims or {}
    return Context(
        seed=seed, target=target, samples=samples, probes=probes, dims=sizes,
        activations=Activations(), gradients=gradient_source(),
        latency=OrtLatency(target, sizes, seed) if target in PROFILES else None,
        legalizers=legalizers(user_tables(), extensions.onnx_emitters),
        trainer=trainer_source(checkpoints), training=training, **rest,
    )  # fmt: skip
