"""Runs models over data and reads a meter: one batch at a time is in memory.

A model is a function from inputs by name to outputs by name: `OrtRunner`, `TorchRunner`,
`NetRunner` and `EvalRunner` are such. A batch holds the model's inputs, and labels where the metric
needs them; `attention_mask`, where there is one, says which tokens count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from regraft.ir.errors import InputError, UsageError
from regraft.passes.check.runners import Runner
from regraft.passes.quality.embedding import (
    EmbeddingMeter,
    EmbeddingQuality,
    Pooling,
    pooled,
)
from regraft.passes.quality.predictions import (
    Accuracy,
    AccuracyMeter,
    Divergence,
    DivergenceMeter,
    Perplexity,
    PerplexityMeter,
    next_tokens,
)

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Array]

TOKENS = "input_ids"
MASK = "attention_mask"
LABELS = "labels"

_EMBEDDINGS = ("embedding", "sentence_embedding", "embeds", "last_hidden_state")
_LOGITS = ("logits",)


def embedding_similarity(
    reference: Runner,
    candidate: Runner,
    batches: Iterable[Batch],
    *,
    output: str | None = None,
    pooling: Pooling = "mean",
    human: Array | None = None,
) -> EmbeddingQuality:
    """Returns how alike the embeddings of two models are.

    Args:
        reference: The first model.
        candidate: The second.
        batches: Texts, or whatever the models embed.
        output: Output with f[B, D] embeddings or f[B, S, D] states of tokens; default: one called
            `embedding`, `sentence_embedding`, `embeds` or `last_hidden_state`, else the only float
            output.
        pooling: How states of tokens become one vector.
        human: People's similarities of the first N items, f[N, N].

    Raises:
        UsageError: When the output is not clear.
    """
    meter = EmbeddingMeter()
    for batch in batches:
        mask = batch.get(MASK)
        # rows without a token fill a batch of fixed size
        used = slice(None) if mask is None else (mask != 0).any(1)
        meter.update(
            *(
                pooled(_output(runner(_inputs(batch)), output, _EMBEDDINGS), mask, pooling)[used]
                for runner in (reference, candidate)
            )
        )
    return meter.result(human)


def divergence(
    reference: Runner, candidate: Runner, batches: Iterable[Batch], *, output: str | None = None
) -> Divergence:
    """Returns how far the second model's predictions are from the first's.

    Args:
        reference: The first model.
        candidate: The second.
        batches: Inputs of both. Positions of tokens that `attention_mask` leaves out do not count.
        output: Output with logits, f[..., V]; default: `logits`, else the only float output.

    Raises:
        UsageError: When the output is not clear.
    """
    meter = DivergenceMeter()
    for batch in batches:
        a, b = (_output(run(_inputs(batch)), output, _LOGITS) for run in (reference, candidate))
        mask = batch.get(MASK)
        meter.update(a, b, mask if mask is not None and mask.shape == a.shape[:-1] else None)
    return meter.result()


def perplexity(
    runner: Runner, batches: Iterable[Batch], *, output: str | None = None
) -> Perplexity:
    """Returns how surprised a language model is.

    Args:
        runner: The model.
        batches: `input_ids` i[B, S], and `attention_mask` where rows are padded. With `labels`
            i[B, S], the tokens to predict are those, and nothing where they are -100.
        output: Output with logits, f[B, S, V]; default: `logits`, else the only float output.

    Raises:
        InputError: When a batch has no tokens.
        UsageError: When the output is not clear.
    """
    meter = PerplexityMeter()
    for batch in batches:
        logits = _output(runner(_inputs(batch)), output, _LOGITS)
        meter.update(logits, _entry(batch, LABELS, TOKENS), batch.get(MASK))
    return meter.result()


def accuracy(
    runner: Runner,
    batches: Iterable[Batch],
    *,
    output: str | None = None,
    next_token: bool = False,
) -> Accuracy:
    """Returns how often a model predicts the label.

    Args:
        runner: The model.
        batches: Inputs, and `labels` i[B] or i[B, S], -100 where none is.
        output: Output with logits, f[B, C] or f[B, S, C]; default: `logits`, else the only float
            output.
        next_token: Whether logits are for the token after, as in a language model: the labels are
            then `labels` or `input_ids`, and masked as in `perplexity`.

    Raises:
        InputError: When a batch has no labels.
        UsageError: When the output is not clear.
    """
    meter = AccuracyMeter()
    for batch in batches:
        logits = _output(runner(_inputs(batch)), output, _LOGITS)
        if next_token:
            labels = next_tokens(logits, _entry(batch, LABELS, TOKENS), batch.get(MASK))
        else:
            labels = _entry(batch, LABELS)
        meter.update(logits, labels)
    return meter.result()


def _inputs(batch: Batch) -> dict[str, Array]:
    return {name: array for name, array in batch.items() if name != LABELS}


def _entry(batch: Batch, *names: str) -> Array:
    for name in names:
        if name in batch:
            return batch[name]
    raise InputError(f"a batch has no `{names[0]}`", hint=f"it has {', '.join(batch) or 'nothing'}")


def _output(outputs: Mapping[str, Any], name: str | None, usual: tuple[str, ...]) -> Array:
    """Returns the output that is measured.

    Raises:
        UsageError: When it is not there, or not clear.
    """
    if name is not None:
        if name not in outputs:
            raise UsageError(f"no output `{name}`", hint=f"there are {', '.join(outputs)}")
        return np.asarray(outputs[name])
    for each in usual:
        if each in outputs:
            return np.asarray(outputs[each])
    floats = [each for each, array in outputs.items() if getattr(array, "dtype", None) is not None
              and array.dtype.kind in "fV"]  # fmt: skip
    if len(floats) != 1:
        raise UsageError(
            f"which output is measured is not clear: {', '.join(outputs)}",
            hint="name it: `output=NAME`",
        )
    return np.asarray(outputs[floats[0]])
