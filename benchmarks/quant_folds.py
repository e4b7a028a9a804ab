"""Equivalence folds on trained models: what they change, and what they are for."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

import regraft
from benchmarks import models, quant_encoder_data
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, shown
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.ops import norm, softmax
from regraft.passes.calibration.statistics import Statistics
from regraft.passes.equivalence import (
    Awq,
    Equalize,
    FoldExponentBias,
    PermuteOutliers,
    ReparamNorms,
    Rotate,
    Smooth,
    SplitWeights,
)
from regraft.passes.equivalence.reparam_norms import channel_ranges, common_range
from regraft.passes.protocol import Context
from regraft.passes.quantization.softmax_codes import Kind, fitted

Array = np.ndarray[Any, Any]
Samples = Sequence[dict[str, Array]]

_FOLDS = (
    Equalize(), Equalize(powers_of_two=False), Smooth(), Smooth(powers_of_two=False),
    ReparamNorms(bits=4), Rotate(), PermuteOutliers(), Awq(), FoldExponentBias(), SplitWeights(),
)  # fmt: skip
_FOLD_BAR = 1e-5
_REPQ_BAR = 5.0
_SOFTMAX_BAR = 0.5
_TOGETHER = "all errors together"
_MAX_NUMBERS = 20_000
_BITS = 4
_LLOYD_ROUNDS = 200


def _subjects() -> Iterator[tuple[str, Module, Samples]]:
    """Yields a decoder, two encoders, a vision transformer and convolutional networks."""
    # small trained models need PyTorch; what imports it is loaded here alone
    from benchmarks.small_models import store

    for name in ("minilm-l3", "ppocr-cls", "ppocr-rec"):
        model = models.named(name)
        yield name, regraft.load(models.find(model)), models.samples(model)
    for name in ("char-lm", "digit-vit", "digit-cnn"):
        found = store.get(name)
        batches = []
        for batch in found.held_out():
            batches.append({key: value for key, value in batch.items() if key != "labels"})
            if len(batches) == 4:
                break
        module = found.module()
        names = [value.name for value in module.graph.inputs]
        yield name, module, [_inputs(batch, names) for batch in batches]


def _inputs(batch: dict[str, Array], names: Sequence[str | None]) -> dict[str, Array]:
    given = {name: batch[name] for name in names if name is not None and name in batch}
    if "attention_mask" in names and "attention_mask" not in given:
        given["attention_mask"] = np.ones_like(batch["input_ids"])
    return given


def _difference(before: Module, after: Module, samples: Samples) -> float:
    runs = OrtRunner(to_proto(before)), OrtRunner(to_proto(after))
    worst = 0.0
    for sample in samples[:2]:
        want, got = (run(sample) for run in runs)
        for name, array in want.items():
            if array.dtype.kind == "f":
                top = float(np.abs(array).max())
                worst = max(worst, float(np.abs(got[name] - array).max()) / max(top, 1e-30))
    return worst


def _folds(settings: Settings) -> Iterator[Row]:
    worst: dict[str, float] = {}
    places: dict[str, int] = {}
    for _, module, samples in _subjects():
        regraft.apply(module, "canonicalize,fuse", check="off")
        for fold in _FOLDS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                after = module.clone()
                ctx = Context(samples=samples, activations=OrtActivations())
                result = fold.run(after, ctx)
            if not result.changed:
                continue
            label = f"{fold.name}{'' if getattr(fold, 'powers_of_two', True) else ', any factors'}"
            found = _difference(module, after, samples)
            worst[label] = max(worst.get(label, 0.0), found)
            places[label] = places.get(label, 0) + 1
    for label, value in worst.items():
        note = f"{places[label]} of 6 models changed, in ONNX Runtime"
        name = f"{label}: largest relative change"
        if label == "equalize, any factors":  # no default: of deep networks, the rounding of f32
            yield shown(name, value, "", note)
            continue
        yield at_most(name, value, _FOLD_BAR, "", note)


def _values(module: Module, ops: Sequence[object], samples: Samples) -> dict[Value, list[Array]]:
    """Returns rows of what some operators give, one array per sample."""
    values = [node.outputs[0] for node in module.graph if node.op in ops]
    if not values:
        return {}
    parts: dict[Value, list[Array]] = {value: [] for value in values}
    for item in OrtActivations().activations(module, values, samples):
        for value, array in item.items():
            parts[value].append(array.reshape(-1, array.shape[-1]))
    return parts


def layer_error(rows: Array, bits: int) -> float:
    """Returns the mean square error of one range for all channels, least to largest."""
    low, high = float(min(rows.min(), 0)), float(max(rows.max(), 0))
    step = (high - low) / (2**bits - 1)
    return float(np.square(np.rint((rows - low) / step) * step + low - rows).mean())


def folded_error(rows: Array, bits: int) -> float:
    """Returns the error of the same rows after the fold, in their own units."""
    stats = Statistics.empty(rows.shape[1], with_moments=False)
    stats.update(rows.astype(np.float32))
    scale, zero = channel_ranges(stats, bits, "percentile")
    common, common_zero = common_range(scale, zero, "mean")
    ratio, shift = scale / common, scale * (zero - common_zero)
    moved = (rows + shift) / ratio
    codes = np.clip(np.rint(moved / common + common_zero), 0, 2**bits - 1)
    back = (codes - common_zero) * common * ratio - shift
    return float(np.square(back - rows).mean())


def _repq(settings: Settings) -> Iterator[Row]:
    for name, module, samples in _subjects():
        regraft.apply(module, "canonicalize,fuse", check="off")
        found = _values(module, (norm.layer_norm,), samples)
        if not found:
            continue
        tensors = [np.concatenate(parts) for parts in found.values()]
        plain = sum(layer_error(rows, _BITS) for rows in tensors)
        folded = sum(folded_error(rows, _BITS) for rows in tensors)
        label = f"{name}: error of norms in {_BITS} bits, one range over folded"
        note = f"{len(found)} layer norms"
        if name == "minilm-l3":  # trained on much text, with the outliers that the fold is for
            yield at_least(label, plain / folded, _REPQ_BAR, "x", note)
        else:
            yield shown(label, plain / folded, "x", note)


def _drawn(subjects: Iterable[tuple[str, Module, Samples]]) -> list[tuple[str, Array]]:
    """Returns numbers of every softmax, with its name."""
    rng = np.random.default_rng(0)
    tensors = []
    for name, module, samples in subjects:
        regraft.apply(module, "canonicalize", check="off")
        for idx, parts in enumerate(_values(module, (softmax.softmax,), samples[:2]).values()):
            flat = np.concatenate([rows.reshape(-1) for rows in parts])
            picked = rng.choice(flat, min(_MAX_NUMBERS, flat.size), replace=False)
            tensors.append((f"{name}, {idx}", picked.astype(np.float64)))
    return tensors


def _encoder() -> Iterator[tuple[str, Module, Samples]]:
    source = quant_encoder_data.encoder()
    feeds = [quant_encoder_data.feed(source.test[first : first + 8]) for first in (0, 8)]
    yield "encoder", regraft.load(source.path), feeds


def least_error(x: Array, values: Array) -> float:
    """Returns the mean square error of numbers by values that moved until none does (Lloyd, 1957).

    Args:
        x: Numbers.
        values: Where to begin, in rising order.
    """
    for _ in range(_LLOYD_ROUNDS):
        idx = np.searchsorted((values[1:] + values[:-1]) / 2, x)
        sizes, sums = (np.bincount(idx, w, len(values)) for w in (None, x))
        values = np.sort(np.where(sizes > 0, sums / np.maximum(sizes, 1), values))
    return float(np.square(values[np.searchsorted((values[1:] + values[:-1]) / 2, x)] - x).mean())


def _published(x: Array, bits: int) -> float:
    """Returns the error of log2 as published: no scale is searched for, the largest number is 1."""
    codes = np.clip(np.rint(-np.log2(np.maximum(x, 1e-30))), 0, 2**bits - 1)
    return float(np.square(np.exp2(-codes) - x).mean())


def _softmaxes(settings: Settings) -> Iterator[Row]:
    kinds: tuple[Kind, ...] = ("log2", "log_sqrt2", "shift_log2", "tangent")
    tensors = _drawn(_subjects())
    yield from _beside_published([*tensors, *_drawn(_encoder())])
    for bits in (3, 4):
        errors = {
            kind: np.array([fitted(each, kind, bits).error(each) for _, each in tensors])
            for kind in kinds
        }
        for kind in kinds[1:]:
            label = f"softmax in {bits} bits: error of {kind} over log2"
            ratios = errors[kind] / errors["log2"]
            worst = int(ratios.argmax())
            note = (
                f"{len(tensors)} softmaxes of trained models; "
                f"{int((ratios <= _SOFTMAX_BAR).sum())} of them within {_SOFTMAX_BAR:g}x"
            )
            for how, value in ((_TOGETHER, errors[kind].sum() / errors["log2"].sum()),
                               ("mean of softmaxes", ratios.mean())):  # fmt: skip
                name = f"{label}, {how}"
                # half steps of 3 bits end at 2^-3.5: no bar for softmaxes one by one
                if kind == "tangent" or (how != _TOGETHER and (kind, bits) == ("log_sqrt2", 3)):
                    yield shown(name, float(value), "x", note)
                else:
                    yield at_most(name, float(value), _SOFTMAX_BAR, "x", note)
            yield shown(f"{label}, worst softmax", float(ratios[worst]), "x", tensors[worst][0])


def _beside_published(tensors: Sequence[tuple[str, Array]]) -> Iterator[Row]:
    """Yields what `shift_log2` loses beside log2 as published, and what any values lose."""
    for bits in (3, 4):
        plain = np.array([_published(each, bits) for _, each in tensors])
        tuned = np.array([fitted(each, "log2", bits).error(each) for _, each in tensors])
        found = [fitted(each, "shift_log2", bits) for _, each in tensors]
        errors = np.array([c.error(x) for c, (_, x) in zip(found, tensors, strict=True)])
        levels = np.arange(2.0**bits)
        bound = np.array(
            [least_error(x, c.values(levels)) for c, (_, x) in zip(found, tensors, strict=True)]
        )
        ratios = errors / plain
        label = f"softmax in {bits} bits: error of shift_log2 over log2 as published"
        note = f"{len(tensors)} softmaxes; {int((ratios <= _SOFTMAX_BAR).sum())} within half"
        together = float(errors.sum() / plain.sum())
        yield at_most(f"{label}, {_TOGETHER}", together, _SOFTMAX_BAR, "x", note)
        yield at_most(f"{label}, mean of softmaxes", float(ratios.mean()), _SOFTMAX_BAR, "x", note)
        worst = int((errors / tuned).argmax())
        for name, value in (("shift_log2", errors), (f"{2**bits} free values", bound)):
            yield shown(
                f"softmax in {bits} bits: error of {name} over log2 with a fitted scale, where "
                "shift_log2 is worst", float(value[worst] / tuned[worst]), "x", tensors[worst][0],
            )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("folds", "what equivalence folds change", _folds),
    Measurement("repq", "error of norms before and after the fold", _repq),
    Measurement("softmax", "codes of softmax results", _softmaxes),
)
