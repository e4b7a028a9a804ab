"""What a pass is: options as fields, a contract, and a result that says what was not rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.rewrite import Observer
from regraft.ir.types import DType
from regraft.passes.plots import Plot
from regraft.passes.recovery.data import Batch, Data
from regraft.passes.recovery.task import Reconstruction, Refit, Task, TrainingReport

if TYPE_CHECKING:
    from regraft.passes.legalize import Legalizer

Samples = Sequence[Mapping[str, np.ndarray[Any, Any]]]


@dataclass(frozen=True, slots=True)
class Exact:
    """Equal in real arithmetic: the allowed difference is a multiple of the source's noise floor.

    Integers and data movement are bit-equal.
    """

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True, slots=True)
class Within:
    """Outputs differ by at most `bound` relative to the largest output, for the reason `why`."""

    bound: float
    why: str

    def __str__(self) -> str:
        return f"within {self.bound:g} ({self.why})"


@dataclass(frozen=True, slots=True)
class Rounded:
    """Equal but for rounding values to `dtype`: the noise of that rounding is the tolerance.

    The noise floor is measured on the source, every value disturbed at random by at most half a
    step of the type. None stands for the type that an option gives.
    """

    dtype: DType | None = None

    def __str__(self) -> str:
        return f"rounded to {self.dtype or 'its dtype'}"


@dataclass(frozen=True, slots=True)
class Lossy:
    """The pass trades quality; `bound` comes from the user, None means unbounded."""

    metric: str
    bound: float | None = None

    def __str__(self) -> str:
        return f"lossy ({self.metric}: {'unbounded' if self.bound is None else self.bound})"


Contract = Exact | Within | Rounded | Lossy


@dataclass(frozen=True, slots=True)
class Skip:
    """A place that a pass looked at and left alone.

    Args:
        node: Name of the place (first result or origin).
        reason: Why, in one sentence.
    """

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class InterfaceMap:
    """How a pass changed the module's interface, for checks to apply.

    Args:
        inputs: New input name -> old input name, or None for an input that is new.
        outputs: New output name -> old output name, or None for an output that is new.
    """

    inputs: Mapping[str, str | None] = field(default_factory=dict)
    outputs: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was asked for and what came of it.

    Args:
        name: What is measured, such as `flops`.
        requested: The fraction of the module before that was asked for.
        achieved: The fraction that was reached.
        met: Whether the difference is within the pass's tolerance.
    """

    name: str
    requested: float
    achieved: float
    met: bool


@dataclass(frozen=True, slots=True)
class LayerError:
    """What a rewrite that rounds costs one layer.

    Args:
        name: Of its weight.
        format: What the weight became.
        error: Root mean square of the difference of its results on the samples, relative to that
            of the results; of the weight itself where `of_results` is false.
        of_results: Whether the layer was run on samples.
        num_bytes: Size of what the weight became.
        float_bytes: Size of the weight before.
    """

    name: str
    format: str
    error: float
    of_results: bool
    num_bytes: int
    float_bytes: int

    @property
    def bytes_to_keep(self) -> int:
        """What keeping it as it was costs."""
        return self.float_bytes - self.num_bytes


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass did.

    Args:
        changed: Whether the module differs from before; checked to be truthful in tests.
        stats: Counts and figures, such as rewrites by rule.
        skipped: Places left alone, with the reason.
        decisions: Resolved choices that `rerun` replays (plans, seeds, kernels).
        interface: Given when inputs or outputs changed.
        unproved: Places rewritten though they could not be evaluated by themselves, with the
            reason; the check of the whole module covers them.
        targets: Figures that were asked for.
        layers: What rounding costs each layer, the worst first.
        plots: What was measured, for reports to draw.
    """

    changed: bool
    stats: Mapping[str, int | float] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()
    decisions: Mapping[str, Any] = field(default_factory=dict)
    interface: InterfaceMap | None = None
    unproved: tuple[Skip, ...] = ()
    targets: tuple[Target, ...] = ()
    layers: tuple[LayerError, ...] = ()
    plots: tuple[Plot, ...] = ()


class Executor(Protocol):
    """Runs a module; implemented by backends and handed in."""

    def run(
        self, module: Module, samples: Samples, *, optimize: bool = True
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Returns the outputs by name for every sample; `optimize` allows runtime rewrites."""


class ActivationSource(Protocol):
    """Gives the values inside a module; implemented by backends and handed in."""

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, np.ndarray[Any, Any]]]:
        """Iterates over the samples; yields the content of each of `values`, in its own dtype.

        Args:
            module: The module.
            values: Values of its main graph.
            samples: Inputs by name.
        """


class GradientSource(Protocol):
    """Gives gradients of a loss; implemented by backends and handed in."""

    def gradients(
        self, module: Module, samples: Samples, weights: Sequence[str] | None = None
    ) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Iterates over the samples; yields the loss's gradient for each weight, f32 or f64.

        Args:
            module: The module.
            samples: Inputs by name, and whatever else the loss needs (labels).
            weights: Names in the module's own store (of the module as it is now, not of the
                checkpoint); default: every float weight that is a parameter.
        """


class LatencySource(Protocol):
    """Measures how long modules take to run; implemented by the caller and handed in."""

    def ratio(self, before: Module, after: Module) -> float:
        """Returns the latency of `after` over that of `before`, measured interleaved."""


class Trainer(Protocol):
    """Fits weights after a lossy rewrite; implemented by backends and handed in."""

    def distill(
        self,
        module: Module,
        teachers: Sequence[Module],
        task: Task,
        data: Data,
        held_out: Sequence[Batch] = (),
    ) -> TrainingReport:
        """Fits the module's weights to its teachers and labels, end to end, in place.

        Args:
            module: The rewritten module.
            teachers: Modules that it learns from, such as the one before the rewrite.
            task: What is fitted, how long, how fast.
            data: Batches: inputs by name, and the entries that the terms speak of.
            held_out: Batches for early stopping.
        """

    def reconstruct(
        self, module: Module, teacher: Module, plan: Reconstruction, samples: Sequence[Batch]
    ) -> list[TrainingReport]:
        """Fits parts of the module to the teacher's values, one by one, in place.

        Args:
            module: The rewritten module.
            teacher: The module before.
            plan: The parts, and how each is fitted.
            samples: Batches of the teacher's inputs.
        """

    def refit(
        self,
        module: Module,
        teacher: Module,
        places: Sequence[Refit],
        samples: Sequence[Batch],
        ridge: float,
    ) -> tuple[str, ...]:
        """Solves for linear layers, one after the other, in place.

        Args:
            module: The rewritten module.
            teacher: The module before.
            places: The layers, in the order in which they are solved for.
            samples: Batches of inputs.
            ridge: How strongly weights are kept where they are, relative to the mean square of
                what they multiply.

        Returns:
            Names of the checkpoint tensors that changed.
        """


@dataclass(slots=True)
class Context:
    """What a pass may use besides its options.

    Attributes:
        seed: Seed of everything random.
        target: Where the result will run (`onnx`, `ort-cpu`, …).
        samples: User samples (calibration, checks), empty when none were given.
        held_out: Samples that no pass fits anything on, where a later pass judges by them.
        probes: Generated samples that the source runs, for when there are no user samples.
        replay: Decisions of an earlier run, which passes then take again: in a pipeline by
            `decision_keys`, for a pass by its name.
        executor: Runs modules, or None.
        activations: Gives values inside a module, or None.
        gradients: Gives gradients by weight, or None.
        latency: Measures how long modules take, or None.
        trainer: Fits weights, or None.
        training: What it fits on, or None: then on the samples.
        teacher: The module before the first lossy pass, where a later pass recovers, or None.
        max_memory_bytes: Working-memory budget, or None.
        explain: Name of a rule whose near misses are wanted, or None.
        explanations: Filled with near misses of that rule.
        observer: Sees every rewrite of a rule; passes hand it to `rewrite`.
        work_dir: Folder for spilled weights and dumps, or None.
        dims: Sizes that are expected at run time, by symbol.
        legalizers: What `legalize` may lower to, by target.
    """

    seed: int = 0
    target: str = "ort-cpu"
    samples: Samples = ()
    held_out: Samples = ()
    probes: Samples = ()
    replay: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    executor: Executor | None = None
    activations: ActivationSource | None = None
    gradients: GradientSource | None = None
    latency: LatencySource | None = None
    trainer: Trainer | None = None
    training: Data | None = None
    teacher: Module | None = None
    max_memory_bytes: int | None = None
    explain: str | None = None
    explanations: list[str] = field(default_factory=list)
    observer: Observer | None = None
    work_dir: Path | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    legalizers: Mapping[str, Legalizer] = field(default_factory=dict)


@runtime_checkable
class Pass(Protocol):
    """A rewrite of a module, in place. Implement it as a frozen dataclass; fields are options."""

    name: ClassVar[str]
    contract: ClassVar[Contract]

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Rewrites `module` and says what changed and what was left alone."""
