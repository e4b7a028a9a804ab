"""Metrics by name: `embedding`, `kl`, `perplexity`, `accuracy`, with options as a pass has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regraft.ir.errors import UsageError
from regraft.passes.pipeline import make_named, parse_steps, suggest
from regraft.passes.quality import Pooling


@dataclass(frozen=True, slots=True)
class Metric:
    """What all metrics have.

    Args:
        output: The output that is measured; default: the usual name, else the only float output.
        tokenizer: A `tokenizer.json`, or a folder with one; default: the one beside the model.
        max_tokens: Longer texts are cut off; default: what the tokenizer says, else 128. The length
            of the windows that `perplexity` and `kl` cut a text into; default: 256.
        batch: Items that run at a time.
        limit: Items that are read at most.
    """

    name: ClassVar[str] = ""

    output: str | None = None
    tokenizer: str | None = None
    max_tokens: int | None = None
    batch: int = 16
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max-tokens", self.max_tokens), ("batch", self.batch),
                            ("limit", self.limit)):  # fmt: skip
            if value is not None and value < 1:
                raise ValueError(f"option `{name}` is {value}, at least 1 is needed")


@dataclass(frozen=True, slots=True)
class EmbeddingMetric(Metric):
    """Cosines between the embeddings of both models; the drop is 1 minus their mean.

    Args:
        pooling: How states of tokens become one vector; default: what `1_Pooling/config.json` in
            the folder of the tokenizer says, else `mean`.
        similarities: A text file with a matrix of people's similarities of the first items; both
            models' Spearman correlation with them is measured.
    """

    name: ClassVar[str] = "embedding"

    pooling: Pooling | None = None
    similarities: str | None = None


@dataclass(frozen=True, slots=True)
class KlMetric(Metric):
    """KL divergence of the second model's predictions from the first's, in nats; that is the drop.

    And how often both predict the same.
    """

    name: ClassVar[str] = "kl"


@dataclass(frozen=True, slots=True)
class PerplexityMetric(Metric):
    """Perplexity of both models on a text; the drop is how much larger the second's is, relative.

    Source: Jelinek et al., Perplexity, a measure of the difficulty of speech recognition, 1977.
    """

    name: ClassVar[str] = "perplexity"


@dataclass(frozen=True, slots=True)
class AccuracyMetric(Metric):
    """Accuracy of both models; the drop is the first's minus the second's.

    On texts, of the next token; on arrays, of `labels`; on a folder of images with one folder per
    class, of the class.
    """

    name: ClassVar[str] = "accuracy"


METRICS: tuple[type[Metric], ...] = (EmbeddingMetric, KlMetric, PerplexityMetric, AccuracyMetric)


@dataclass(frozen=True, slots=True)
class Asked:
    """A metric that is to be measured.

    Args:
        metric: The metric.
        data: Path of what it is measured on.
        max_drop: What may be lost, None for any amount.
    """

    metric: Metric
    data: Path
    max_drop: float | None = None


def parse_metric(text: str) -> Metric:
    """Returns the metric that a text such as `embedding{similarities=pairs.txt}` names.

    Raises:
        UsageError: For an unknown metric or option, or a value of the wrong type.
    """
    steps = parse_steps(text)
    if len(steps) != 1:
        raise UsageError(f"`{text}` names {len(steps)} metrics", hint="give one at a time")
    known: Mapping[str, type[Any]] = {cls.name: cls for cls in METRICS}
    step = steps[0]
    cls = known.get(step.name)
    if cls is None:
        raise UsageError(f"unknown metric `{step.name}`", hint=suggest(step.name, known))
    made: Metric = make_named(cls, step.options, f"metric `{step.name}`")
    return made


def parse_drop(text: str) -> float:
    """Returns what `--max-drop` allows: `0.01` or `1%`.

    Raises:
        UsageError: When it is no such number.
    """
    bare = text.strip()
    try:
        value = float(bare.removesuffix("%")) / (100 if bare.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"`--max-drop {text}` is no number of 0 or more", hint="0.01, or 1%")
    return value
