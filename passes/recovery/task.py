"""A training run as data: objective, schedule, what is trained; and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.passes.recovery.objective import Loss, Mse, Term

Precision = Literal["fp32", "bf16", "auto"]
Stop = Literal["steps", "patience"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: AdamW, linear warmup, then half a cosine.

    Args:
        steps: Updates of the weights.
        learning_rate: The highest.
        warmup_steps: Steps until it is reached.
        final_ratio: The last learning rate, as a fraction of the highest.
        weight_decay: AdamW's, for weights of two or more axes.
        betas: AdamW's averages.
        batches_per_step: Batches whose gradients are averaged for one update, over all processes:
            the result does not depend on how many there are.
        max_grad_norm: Longer gradients are scaled to this length; None for no limit.
        precision: `bf16` runs matrix products in bf16 (autocast), weights stay f32; `auto` does
            where the processor has instructions for it.
        seed: Seed of everything random.
        evaluate_every: Steps between looks at held-out batches.
        patience: Looks without a better loss after which training stops, with the best weights;
            None for all steps.
        checkpoint_every: Steps between checkpoints; 0 for one at the end alone.
        orthogonal: Each weight's gradient loses its part along the weight, and keeps its length:
            no step only scales logits. Source: Prieto et al., Grokking at the Edge of Numerical
            Stability, 2025 (⊥Grad).
    """

    steps: int
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    final_ratio: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    batches_per_step: int = 1
    max_grad_norm: float | None = 1.0
    precision: Precision = "fp32"
    seed: int = 0
    evaluate_every: int = 50
    patience: int | None = None
    checkpoint_every: int = 0
    orthogonal: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"`{name}` is {value}, at least {least} is needed"
            for name, value, least in (
                ("steps", self.steps, 1),
                ("warmup_steps", self.warmup_steps, 0),
                ("batches_per_step", self.batches_per_step, 1),
                ("evaluate_every", self.evaluate_every, 1),
                ("checkpoint_every", self.checkpoint_every, 0),
            )
            if value < least
        ]
        if self.warmup_steps > self.steps:
            problems.append(f"`warmup_steps` is {self.warmup_steps} of {self.steps} steps")
        if not self.learning_rate > 0:
            problems.append(f"`learning_rate` is {self.learning_rate}, it has to be positive")
        if problems:
            raise UsageError("schedule: " + "; ".join(problems))

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, 0 for the first.

        Source: Loshchilov & Hutter, SGDR, 2016, eq. 5 (one period).
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.learning_rate * (self.final_ratio + (1 - self.final_ratio) * cosine)


@dataclass(frozen=True, slots=True)
class Lora:
    """Trains `W + (alpha / rank) B A` instead of `W`, and folds the sum back.

    Source: Hu et al., LoRA, 2021, eq. 3. `B` starts at zero, so that training starts at `W`.

    Args:
        rank: Rows of `A`, columns of `B`.
        alpha: Scale, over `rank`.
    """

    rank: int = 8
    alpha: float = 16.0


@dataclass(frozen=True, slots=True)
class Spp:
    """Trains factors of sparse weights, `W + s W * repeat(A) * b`: zeros stay zeros.

    Source: Lu et al., SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning, 2024, eq. 3. `b`
    starts at zero, so that training starts at `W`.

    Args:
        groups: Groups of rows that share a row of `A`.
        scale: `s`.
    """

    groups: int = 4
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Dsee:
    """Trains `W + U V + S` of sparse weights: low rank, and a few numbers at fixed places.

    Source: Chen et al., DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language
    Models, 2021, eq. 2. `U` and `S` start at zero, so that training starts at `W`. Folded, `W` is
    dense.

    Args:
        rank: Columns of `U`, rows of `V`.
        kept: Numbers of `S` in each matrix, where `W` is largest.
    """

    rank: int = 8
    kept: int = 64


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What a weight is rounded to: `scale (q - zero)` with whole q from `low` to `high`.

    Args:
        weight: The constant operand, f32[K, N], or [N, K] where `transposed`.
        transposed: Whether it lies as [N, K].
        scale: f32[G, N], where scales begin, one per group of positions of K.
        zero: f32[G, N] of whole numbers, or None for 0.
        group: Positions of K that share a scale.
        low: Least code.
        high: Largest code.
    """

    weight: Value
    transposed: bool
    scale: np.ndarray[Any, Any] = field(repr=False)
    zero: np.ndarray[Any, Any] | None = field(repr=False)
    group: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class FlexRound:
    """Trains what weights are divided by before they are rounded, and stores them rounded.

    `s1 round(W / (s1 S2 s3))` with a scale s1 per group, a divisor S2 per weight and s3 per output;
    both begin at 1. Rounding passes gradients on. What scales became is in the report.

    Source: Lee et al., FlexRound: Learnable Rounding based on Element-wise Division, 2023, eq. 2.

    Args:
        grids: The weights, and where their scales begin; other weights stay.
    """

    grids: tuple[Grid, ...]


Adapter = Lora | Spp | Dsee | FlexRound


@dataclass(frozen=True, slots=True)
class Task:
    """What is fitted to what.

    Args:
        terms: The objective is their sum.
        schedule: How long and how fast.
        trained: Names of the weights that may change; default: all float parameters, with an
            adapter the matrices of linear layers.
        adapter: What is trained in their place, or None for the weights themselves.
        beside: Names of weights that are trained themselves, beside an adapter.
        max_cache_bytes: What training does not change (values of the teachers, and of the module
            before its first trained weight) is computed once per batch where batches come back
            (`Numbered`); beyond this it lies in files.
    """

    terms: tuple[Term, ...]
    schedule: Schedule
    trained: tuple[str, ...] | None = None
    adapter: Adapter | None = None
    beside: tuple[str, ...] = ()
    max_cache_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if not self.terms:
            raise UsageError("a task without terms has nothing to make small")
        if self.beside and self.adapter is None:
            raise UsageError("task: weights `beside` an adapter, and there is none",
                             hint="name them in `trained`")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the module that is fitted to a part of the teacher, by itself.

    Args:
        inputs: Values that the part reads -> the teacher's values that it is fed.
        output: What the part gives.
        target: The teacher's value that it is fitted to.
        mask: Graph input of the teacher that is nonzero where positions count.
    """

    inputs: tuple[tuple[Value, Value], ...]
    output: Value
    target: Value
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Block after block, each fitted to the teacher's values.

    Args:
        blocks: In the order in which they are fitted.
        schedule: Of each block.
        loss: `Mse` or `NormalizedMse`.
        adapter: What is trained in place of the weights, or None.
        max_cache_bytes: The teacher's values beyond this go to files.
    """

    blocks: tuple[Block, ...]
    schedule: Schedule
    loss: Loss = field(default_factory=Mse)
    adapter: Adapter | None = None
    max_cache_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Refit:
    """A linear layer that is solved for: least squares, no steps.

    What the layer is added to stays as it is: the weight and the bias move so that `result` comes
    as near to the teacher's as a linear function of `input` can bring it.

    Args:
        input: What the layer multiplies, its last axis being summed over.
        weight: Its constant operand `[in, out]`, a weight or the transpose of one.
        bias: What is added to the product, a weight `[out]`, or None.
        result: Value of the module that the layer's result is a summand of.
        target: The teacher's.
        mask: Graph input that is nonzero where positions count.
    """

    input: Value
    weight: Value
    bias: Value | None
    result: Value
    target: Value
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What came of a run.

    Args:
        steps: Updates that were made, those before a resumption included.
        losses: Objective at every step, averaged over the step's batches.
        held_out: (step, loss on held-out batches).
        stopped: Why it ended.
        changed: Names of the checkpoint tensors that changed.
        scales: Of an adapter that rounds: f32[G, N] by the operand that was rounded.
    """

    steps: int
    losses: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]
    stopped: Stop
    changed: tuple[str, ...] = ()
    scales: Mapping[Value, np.ndarray[Any, Any]] = field(default_factory=dict)
