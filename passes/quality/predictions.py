"""How well a model predicts, and how far its predictions are from another's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.errors import CheckError, InputError

Array = np.ndarray[Any, Any]

IGNORED = -100
"""Label of what does not count."""

_CHUNK_ELEMENTS = 1 << 20
"""Logits that are widened to f64 at a time: vocabularies are large."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How surprised a model is by a text.

    Args:
        perplexity: `exp(nll)`.
        nll: Mean over the predicted tokens of -ln p(token | tokens before), in nats.
        count: Number of predicted tokens.
    """

    perplexity: float
    nll: float
    count: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the second model's predictions are from the first's.

    Args:
        mean: Mean over positions of KL(first || second) in nats, of the softmax over the last axis.
        worst: The largest.
        agreement: Share of the positions at which both have the largest logit at the same place.
        count: Number of positions.
    """

    mean: float
    worst: float
    agreement: float
    count: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often the largest logit is that of the label.

    Args:
        accuracy: Share of the labels.
        count: Number of labels.
    """

    accuracy: float
    count: int


class PerplexityMeter:
    """Sums the surprise over batches of texts."""

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def update(self, logits: Array, tokens: Array, mask: Array | None = None) -> None:
        """Adds a batch: the logits at position t are for token t + 1.

        Args:
            logits: f[B, S, V].
            tokens: i[B, S]; `IGNORED` where nothing is to be predicted.
            mask: i[B, S], nonzero for tokens that count; None for all. A token is predicted where
                it and the one before it count.

        Raises:
            CheckError: When logits are NaN.
            InputError: When the shapes do not belong together, or a token is out of range.
        """
        labels = next_tokens(logits, tokens, mask)
        for rows, wanted in _counted(logits, labels):
            logs = _log_softmax(rows)
            self._total -= float(logs[np.arange(len(rows)), wanted].sum())
            self._count += len(rows)

    def result(self) -> Perplexity:
        """Returns what was found.

        Raises:
            InputError: When nothing was predicted.
        """
        _check_count(self._count, "token is predicted")
        nll = self._total / self._count
        return Perplexity(math.exp(nll) if nll < 700 else math.inf, nll, self._count)


class DivergenceMeter:
    """Sums divergences over batches."""

    def __init__(self) -> None:
        self._total = 0.0
        self._worst = 0.0
        self._same = 0
        self._count = 0

    def update(self, reference: Array, candidate: Array, mask: Array | None = None) -> None:
        """Adds a batch.

        Args:
            reference: Logits of the first model, f[..., V].
            candidate: Those of the second, of the same shape.
            mask: i[...], nonzero for positions that count; None for all.

        Raises:
            CheckError: When logits are NaN.
            InputError: When the shapes do not belong together.
        """
        if reference.shape != candidate.shape:
            raise InputError(f"logits {list(reference.shape)} and {list(candidate.shape)}")
        counts = _labels_of(mask, reference.shape[:-1])
        both = zip(_counted(reference, counts), _counted(candidate, counts), strict=True)
        for (a, _), (b, _) in both:
            log_p, log_q = _log_softmax(a), _log_softmax(b)
            p = np.exp(log_p)
            # 0 ln(0 / q) = 0: what the first model rules out does not count
            parts = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)
            # rounding may leave a divergence of equal rows a little below zero
            each = np.maximum((p * parts).sum(-1), 0.0)
            self._total += float(each.sum())
            self._worst = max(self._worst, float(each.max(initial=0.0)))
            self._same += int((a.argmax(-1) == b.argmax(-1)).sum())
            self._count += len(a)

    def result(self) -> Divergence:
        """Returns what was found.

        Raises:
            InputError: When there was no position.
        """
        _check_count(self._count, "position counts")
        n = self._count
        return Divergence(self._total / n, self._worst, self._same / n, n)


class AccuracyMeter:
    """Counts right predictions over batches."""

    def __init__(self) -> None:
        self._right = 0
        self._count = 0

    def update(self, logits: Array, labels: Array) -> None:
        """Adds a batch.

        Args:
            logits: f[..., C]: one row of classes per label; of equal logits the first counts.
            labels: i[...], `IGNORED` where none is.

        Raises:
            CheckError: When logits are NaN.
            InputError: When the shapes do not belong together, or a label is out of range.
        """
        for rows, wanted in _counted(logits, np.asarray(labels)):
            self._right += int((rows.argmax(-1) == wanted).sum())
            self._count += len(rows)

    def result(self) -> Accuracy:
        """Returns what was found.

        Raises:
            InputError: When there was no label.
        """
        _check_count(self._count, "label counts")
        return Accuracy(self._right / self._count, self._count)


def next_tokens(logits: Array, tokens: Array, mask: Array | None = None) -> Array:
    """Returns the label of every position, i64[B, S]: the token after it, `IGNORED` at the end.

    Args:
        logits: f[B, S, V].
        tokens: i[B, S].
        mask: i[B, S], nonzero for tokens that count; None for all.
    """
    if logits.ndim != 3 or logits.shape[:2] != np.shape(tokens):
        raise InputError(
            f"logits {list(logits.shape)} for tokens {list(np.shape(tokens))}",
            hint="logits of a language model are [batch, tokens, vocabulary]",
        )
    labels = np.full(np.shape(tokens), IGNORED, np.int64)
    labels[:, :-1] = np.asarray(tokens)[:, 1:]
    if mask is not None:
        counts = np.asarray(mask) != 0
        labels[:, :-1][~(counts[:, 1:] & counts[:, :-1])] = IGNORED
    return labels


def _labels_of(mask: Array | None, shape: tuple[int, ...]) -> Array:
    """Returns 0 where positions count, `IGNORED` elsewhere."""
    if mask is None:
        return np.zeros(shape, np.int64)
    if np.shape(mask) != shape:
        raise InputError(f"a mask {list(np.shape(mask))} for positions {list(shape)}")
    return np.where(np.asarray(mask) != 0, 0, IGNORED)


def _counted(logits: Array, labels: Array) -> Iterator[tuple[Array, Array]]:
    """Yields f64[N, V] logits and i[N] labels of what counts, a bounded number at a time."""
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
        raise InputError(
            f"logits {list(logits.shape)} for labels {list(labels.shape)}",
            hint="one row of logits per label",
        )
    classes = logits.shape[-1]
    flat, wanted = logits.reshape(-1, classes), labels.reshape(-1)
    places = np.flatnonzero(wanted != IGNORED)
    step = max(1, _CHUNK_ELEMENTS // max(1, classes))
    for first in range(0, len(places), step):
        at = places[first : first + step]
        rows, chosen = flat[at].astype(np.float64), wanted[at]
        if np.isnan(rows).any():
            raise CheckError("logits are NaN", hint="`regraft compare` names the first such value")
        if chosen.min() < 0 or chosen.max() >= classes:
            raise InputError(
                f"labels from {chosen.min()} to {chosen.max()} for {classes} classes",
                hint=f"classes count from 0; {IGNORED} stands for no label",
            )
        yield rows, chosen


def _log_softmax(rows: Array) -> Array:
    shifted = rows - rows.max(-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


def _check_count(count: int, what: str) -> None:
    if not count:
        raise InputError(f"no {what}", hint="give more data, or a mask that leaves some of it")
