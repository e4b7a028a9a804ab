"""What a rewrite costs, as numbers: a metric measured on two models and the user's data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.frontends.huggingface.tokenizers import TOKENIZER
from regraft.huggingface_sources import source_folder
from regraft.ir.errors import InputError, TargetError, UsageError
from regraft.ir.module import Module
from regraft.metrics import (
    AccuracyMetric,
    EmbeddingMetric,
    KlMetric,
    Metric,
    PerplexityMetric,
)
from regraft.passes.check.runners import Runner
from regraft.passes.protocol import Target
from regraft.passes.quality import accuracy, divergence, embedding_similarity, perplexity
from regraft.quality_data import (
    Arrays,
    Batch,
    Images,
    Texts,
    open_images,
    open_texts,
    pooling_of,
    read_matrix,
)
from regraft.sources import Source

Data = Arrays | Texts | Images


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured.

    Args:
        metric: Name of the metric.
        drop: What the second model loses; `--max-drop` bounds it.
        figures: The numbers by name; those of one model end in `_a` or `_b`.
    """

    metric: str
    drop: float
    figures: Mapping[str, float | int | None]

    def to_json(self) -> dict[str, Any]:
        """Returns it as one JSON object."""
        return {"metric": self.metric, "drop": self.drop, **self.figures}


def measure_quality(
    metric: Metric,
    a: Runner,
    b: Runner,
    data: Iterable[Batch],
    *,
    pooling: str | None = None,
) -> Quality:
    """Returns what a metric says of two models.

    Args:
        metric: The metric.
        a: The reference.
        b: The other model.
        data: Batches that can be iterated over more than once.
        pooling: How states of tokens become a vector, where the metric does not say it.

    Raises:
        InputError: When the data does not fit the metric.
        UsageError: When it is not clear which output is measured.
    """
    if isinstance(metric, EmbeddingMetric):
        human = None if metric.similarities is None else read_matrix(Path(metric.similarities))
        chosen: Any = metric.pooling or pooling or "mean"
        found = embedding_similarity(a, b, data, output=metric.output, pooling=chosen, human=human)
        figures = {
            "items": found.count, "cosine_mean": found.mean, "cosine_worst": found.worst,
            "worst_item": found.worst_idx, "pair_spearman": found.pair_spearman,
        }  # fmt: skip
        if human is not None:
            figures |= {"human_spearman_a": found.human_reference,
                        "human_spearman_b": found.human_candidate}  # fmt: skip
        return Quality(metric.name, 1.0 - found.mean, figures)
    if isinstance(metric, KlMetric):
        apart = divergence(a, b, data, output=metric.output)
        return Quality(
            metric.name, apart.mean,
            {"positions": apart.count, "kl_mean": apart.mean, "kl_worst": apart.worst,
             "top1_agreement": apart.agreement},
        )  # fmt: skip
    if isinstance(metric, PerplexityMetric):
        before, after = (perplexity(run, data, output=metric.output) for run in (a, b))
        return Quality(
            metric.name, after.perplexity / before.perplexity - 1.0,
            {"tokens": before.count, "perplexity_a": before.perplexity,
             "perplexity_b": after.perplexity, "nll_a": before.nll, "nll_b": after.nll},
        )  # fmt: skip
    if isinstance(metric, AccuracyMetric):
        is_text = isinstance(data, Texts)
        first, second = (
            accuracy(run, data, output=metric.output, next_token=is_text) for run in (a, b)
        )
        return Quality(
            metric.name, first.accuracy - second.accuracy,
            {"labels": first.count, "accuracy_a": first.accuracy, "accuracy_b": second.accuracy},
        )  # fmt: skip
    raise UsageError(f"metric `{metric.name}` cannot be measured between two models")


def measure_sources(
    metric: Metric, path: Path, a: Source, b: Source, runners: tuple[Runner, Runner]
) -> Quality:
    """Returns what a metric says of two models on the data of a path.

    Args:
        metric: The metric.
        path: Text, a `.npz` file or a folder of them, or a folder of images.
        a: The first model's source, which says what a batch has to look like.
        b: The second's; its folder may have the tokenizer where the first's has none.
        runners: Run them.

    Raises:
        InputError: When the data cannot be read or does not fit.
    """
    data, tokenizer = open_data(metric, path, a.module, [*folders_of(a), *folders_of(b)])
    pooling = None
    if isinstance(metric, EmbeddingMetric) and metric.pooling is None and tokenizer is not None:
        pooling = pooling_of(tokenizer.parent)
    return measure_quality(metric, *runners, data, pooling=pooling)


def open_data(
    metric: Metric,
    path: Path,
    module: Module,
    folders: Sequence[Path],
    *,
    tokenizer_hint: str | None = None,
) -> tuple[Data, Path | None]:
    """Returns the data of a path, and the tokenizer that it needs.

    Args:
        metric: What is measured on it.
        path: The data.
        module: The model that it is for.
        folders: Where tokenizer and processor may lie.
        tokenizer_hint: How to name a tokenizer; default: by an option of the metric.

    Raises:
        InputError: When there is no such path, or no tokenizer for a text.
    """
    if not path.exists():
        raise InputError(f"`{path}` does not exist", hint="check the path")
    if path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npz"))):
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        return Arrays(files[: metric.limit], module), None
    if path.is_dir():
        return open_images(path, module, folders, metric), None
    hint = tokenizer_hint or (
        f"name one, `--metric {metric.name}{{tokenizer=FOLDER}}`, or give `.npz` files"
    )
    tokenizer = _tokenizer(metric, path, folders, hint)
    windows = not isinstance(metric, EmbeddingMetric)
    return open_texts(path, module, tokenizer, metric, windows=windows), tokenizer


def _tokenizer(metric: Metric, path: Path, folders: Sequence[Path], hint: str) -> Path:
    named = None if metric.tokenizer is None else Path(metric.tokenizer)
    places = folders if named is None else [named]
    files = [place / TOKENIZER if place.is_dir() else place for place in places]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        place = "beside the model" if named is None else f"at `{named}`"
        raise InputError(f"`{path}` is text, and there is no `{TOKENIZER}` {place}", hint=hint)
    return found


def folders_of(source: Source) -> list[Path]:
    """Returns the folder in which a source's tokenizer may lie, if there is one."""
    folder = source_folder(source.module)
    if folder is not None:
        return [folder]
    return [] if source.file is None else [source.file.parent]


def drop_target(quality: Quality, allowed: float) -> Target:
    """Returns what `--max-drop` asked for, and what came of it."""
    return Target("drop", allowed, quality.drop, quality.drop <= allowed)


def check_drop(quality: Quality, allowed: float) -> None:
    """Checks the drop against what is allowed.

    Raises:
        TargetError: When it is more.
    """
    if not drop_target(quality, allowed).met:
        raise TargetError(
            f"the {quality.metric} drop is {quality.drop:.4g}, allowed is {allowed:g}",
            hint="ask for less of the lossy passes, recover afterwards, or allow more",
        )


def describe(quality: Quality) -> list[tuple[str, str]]:
    """Returns the figures for people: name and number."""
    rows = [
        (name.replace("_", " "), "-" if value is None else f"{value:.6g}")
        for name, value in quality.figures.items()
    ]
    return [*rows, ("drop", f"{quality.drop:.6g}")]
