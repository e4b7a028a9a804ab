"""What training makes small: losses between a module's values and its teachers', or labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.ir.errors import UsageError
from regraft.ir.graph import Value


@dataclass(frozen=True, slots=True)
class Mse:
    """Mean of the squared differences."""


@dataclass(frozen=True, slots=True)
class NormalizedMse:
    """Squared differences over the teacher's squares, so that features of every size weigh alike.

    Source: Zhang et al., LAPTOP-Diff, 2024 (normalized feature distillation).
    """


@dataclass(frozen=True, slots=True)
class Kl:
    """KL divergence of the softmax over the last axis from the teachers' average softmax.

    Source: Shen & Savvides, MEAL V2, 2020, eq. 1 and 2 (average of teachers); Hinton et al.,
    Distilling the Knowledge in a Neural Network, 2015 (temperature, times its square).

    Args:
        temperature: Divides the logits of both.
    """

    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Nkd:
    """Normalized distillation: the target class, and the others among themselves.

    Source: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, 2023, eq. 7.

    Args:
        gamma: Weight of the classes that are not the target.
        temperature: Divides the logits for these.
    """

    gamma: float = 1.5
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross-entropy of logits over the last axis with integer labels.

    Args:
        smoothing: Probability that is spread over all classes.
        ignored: Label of positions that do not count.
        stable: Probabilities are those of StableMax instead of softmax: large logits keep a
            gradient. Source: Prieto et al., Grokking at the Edge of Numerical Stability, 2025.
    """

    smoothing: float = 0.0
    ignored: int = -100
    stable: bool = False


@dataclass(frozen=True, slots=True)
class Discriminator:
    """How well a small net, trained along, tells the outputs from the teachers' average.

    Source: Shen & Savvides, MEAL V2, 2020, eq. 4. It stands beside `Kl`, which it regularizes.

    Args:
        hidden: Width of its inner layers.
    """

    hidden: int = 64


@dataclass(frozen=True, slots=True)
class Balance:
    """How unevenly experts are chosen: `E Σ f_i p_i` of a router's scores, 1 where they are even.

    Source: Fedus et al., Switch Transformers, 2021, eq. 4; Qiu et al., Demons in the Detail, 2025,
    eq. 3 (`scope="global"`); Wang et al., HMoE, 2024, eq. 7 (`sizes`).

    Args:
        top_k: Experts of a token.
        sizes: Of the experts, where they have several: an expert's share counts as much as it is
            larger than the mean, so that small ones are favoured. (): all count the same.
        scope: `batch` counts the tokens of a batch; `global` those of all batches of a step so
            far, in all processes: what is to be even is the data's share, not every batch's.
    """

    top_k: int
    scope: Literal["batch", "global"] = "batch"
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class RouterZ:
    """Mean of the squared logarithm of the sum of a router's exponentials: scores stay small.

    Source: Zoph et al., ST-MoE, 2022, eq. 5.
    """


@dataclass(frozen=True, slots=True)
class MarginBalance:
    """How unevenly experts reach thresholds of the input: `E Σ f_i m_i` of their margins.

    f is the share of the tokens whose margin is not negative, m the mean margin. The margins of
    `upcycle-ffn{select=adaptive}` are those that `passes.experts.adaptive.margins_of` names.

    Source: Liu and Luo, AdaMoLE, 2024, as its layers compute it.
    """


Loss = (
    Mse
    | NormalizedMse
    | Kl
    | Nkd
    | CrossEntropy
    | Discriminator
    | Balance
    | RouterZ
    | MarginBalance
)


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the objective.

    Args:
        loss: What is measured.
        student: Name of an output of the module, or a value of its graph.
        teacher: The same for the teachers: an output's name, or one value per teacher; None for a
            loss with labels alone, or of a router's scores.
        label: Entry of the batch that holds integer labels.
        mask: Entry of the batch that is nonzero where positions count; its axes are the leading
            ones of the value.
        weight: Factor.
    """

    loss: Loss
    student: str | Value
    teacher: str | tuple[Value, ...] | None = None
    label: str | None = None
    mask: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        needs_label = isinstance(self.loss, CrossEntropy | Nkd)
        needs_teacher = not isinstance(self.loss, CrossEntropy | Balance | RouterZ | MarginBalance)
        kind = type(self.loss).__name__
        if needs_label != (self.label is not None):
            raise UsageError(
                f"term {kind} {'needs a' if needs_label else 'takes no'} `label`",
                hint="labels are an entry of the batch, by its name",
            )
        if needs_teacher != (self.teacher is not None):
            raise UsageError(
                f"term {kind} {'needs a' if needs_teacher else 'takes no'} `teacher`",
                hint="name an output of the teacher, or give one of its values",
            )
