"""Small weights of a trained language model: divergence, perplexity, what is sampled."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_most, shown
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.module import Module
from regraft.passes.protocol import Context
from regraft.passes.quantization import Quantize

Array = np.ndarray[Any, Any]

_WEIGHTS = "uint4"
_GROUP = 32
_BAR = 0.5
_SEED = 77
_CALIBRATION = (16, 8, 128)
"""Batches, windows in each, characters of a window: training text, drawn anew."""
_TEST = (64, 16, 128)
"""Windows of files that were not trained on, windows in a batch, characters."""

_SAMPLED = 8
_FORMATS = ("int8", "nf4", "fp4", "int4")
_TEMPERATURES = (0.0, 0.5, 0.7, 1.0)


def _feed(ids: Array) -> dict[str, Array]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _scores(module: Module, batches: Sequence[Array]) -> list[Array]:
    """Returns log-probabilities f64[B, S, V] of every batch."""
    run = OrtRunner(to_proto(module))
    found = []
    for ids in batches:
        logits = next(iter(run(_feed(ids)).values())).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        found.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return found


def _perplexity(scores: Sequence[Array], batches: Sequence[Array]) -> float:
    losses = [
        -np.take_along_axis(each[:, :-1], ids[:, 1:, None], -1).mean()
        for each, ids in zip(scores, batches, strict=True)
    ]
    return float(np.exp(np.mean(losses)))


def _divergence(want: Sequence[Array], got: Sequence[Array]) -> float:
    """Mean Kullback-Leibler divergence per position."""
    each = [(np.exp(a) * (a - b)).sum(-1).mean() for a, b in zip(want, got, strict=True)]
    return float(np.mean(each))


def agreement(
    want: Sequence[Array], got: Sequence[Array], temperature: float, seed: int = 0
) -> float:
    """Returns the share of positions at which two models give the same token.

    Args:
        want: Log-probabilities f64[B, S, V] by batch.
        got: Those of the other model.
        temperature: 0 takes the likeliest; else both sample, by the same random numbers.
        seed: Of these.
    """
    rng = np.random.default_rng(seed)
    same = count = 0
    for a, b in zip(want, got, strict=True):
        # the largest of logits / T + Gumbel noise is a sample of the softmax
        noise = rng.gumbel(size=a.shape) if temperature else np.zeros(a.shape)
        picked = [(each / (temperature or 1.0) + noise).argmax(-1) for each in (a, b)]
        same += int((picked[0] == picked[1]).sum())
        count += picked[0].size
    return same / count


def _temperatures(settings: Settings) -> Iterator[Row]:
    from benchmarks.small_models import corpus, store

    module = store.get("char-lm").module()
    regraft.apply(module, "canonicalize,fuse", check="off")
    _, size, length = _TEST
    test = [batch["input_ids"] for batch in corpus.held_out_batches(_SAMPLED, size, length)]
    want = _scores(module, test)
    for weights in _FORMATS:
        after = module.clone()
        group = 0 if weights == "int8" else 64
        options = Quantize(
            weights=weights, group=group, method="round", activations="none", embeddings="none"
        )
        options.run(after, Context())
        got = _scores(after, test)
        for temperature in _TEMPERATURES:
            how = f"sampled at T={temperature:g}" if temperature else "greedy"
            yield shown(
                f"{weights}: the same token, {how}", 100 * agreement(want, got, temperature), "%",
                f"{sum(map(len, test))} windows of {length} characters",
            )  # fmt: skip


def _decoder(settings: Settings) -> Iterator[Row]:
    # needs PyTorch, which the other measurements of this module's suite do without
    from benchmarks.small_models import corpus, store

    module = store.get("char-lm").module()
    regraft.apply(module, "canonicalize,fuse", check="off")
    count, size, length = _CALIBRATION
    samples = [
        _feed(corpus.training_batch(_SEED, step, size, length)["input_ids"])
        for step in range(count)
    ]
    test = [batch["input_ids"] for batch in corpus.held_out_batches(*_TEST)]
    want = _scores(module, test)
    base = _perplexity(want, test)
    found: dict[str, tuple[float, float]] = {}
    for method in ("round", "gptq"):
        after = module.clone()
        options = Quantize(weights=_WEIGHTS, group=_GROUP, method=method, embeddings="none")
        options.run(after, Context(samples=samples, activations=OrtActivations()))
        got = _scores(after, test)
        found[method] = _divergence(want, got), _perplexity(got, test) - base
    note = (
        f"{_WEIGHTS} in groups of {_GROUP}, {sum(map(len, test))} windows that were not trained on"
    )
    yield shown("language model: perplexity", base, "", "in float")
    for method, (divergence, loss) in found.items():
        yield shown(f"{method}: KL divergence", divergence, "nats", note)
        yield shown(f"{method}: loss of perplexity", loss, "", note)
    (plain_kl, plain_loss), (kl, loss) = found["round"], found["gptq"]
    yield at_most("KL divergence, gptq over round", kl / plain_kl, _BAR, "x", note)
    yield at_most("loss of perplexity, gptq over round", loss / plain_loss, _BAR, "x", note)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("decoder", "4-bit weights of a small language model", _decoder),
    Measurement("temperatures", "formats of weights under decoding temperatures", _temperatures),
)
