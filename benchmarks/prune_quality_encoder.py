"""Real trained models with a part of their FLOPs removed, without training.

The sentence encoder at 80 and 60 % of its FLOPs against norms of weights and against Torch-Pruning
with the recipe that works there: whole model, told its heads, layers that write the hidden states
left alone, attributes mended afterwards. MobileNetV2 and the text detector at 80 %: what repair
brings back. Half of the samples calibrate, the other half is compared.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import regraft
from benchmarks import encoder as source
from benchmarks import models
from benchmarks.fixtures import vision_ops
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import ROOT, Measurement, Row, Settings, at_least, shown
from benchmarks.prune_real import closeness
from benchmarks.prune_torch_pruning import heads_of, mend_heads
from benchmarks.prune_trained_torch import (
    Trained,
    cosines_of,
    mobilenet,
    outputs_of,
    sentences,
    spearman_of,
)
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.activations import OrtActivations
from regraft.backends.onnx.runtime import OrtRunner
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune

VERSION = 1
_TOPIC = "prune_quality"
FRACTIONS = (0.8, 0.6)
L2, OURS = "uniform L2", "default, repaired"
PLAIN = "default, not repaired"
METHODS: dict[str, Prune] = {
    L2: Prune(criterion="l2", allocation="uniform", repair="none"),
    PLAIN: Prune(repair="none"),
    OURS: Prune(),
}
TORCH_PRUNING = "Torch-Pruning 1.6.1"
_CLOSE = 0.005
_TRIES = 10


def _pruned(trained: Trained, method: str, fraction: float) -> tuple[Any, Figures]:
    module = trained.module.clone()
    ctx = Context(samples=trained.calibrate, activations=OrtActivations())
    result = replace(METHODS[method], target=f"flops:{fraction}").run(module, ctx)
    return outputs_of(module, trained.compare), dict(result.stats)


def _sentences(method: str, fraction: float, settings: Settings) -> Figures:
    def make() -> Figures:
        vision_ops.declare()
        trained = sentences()
        dense = outputs_of(trained.module, trained.compare)
        if method == TORCH_PRUNING:
            found, stats = _torch_pruning(trained, fraction)
        else:
            found, stats = _pruned(trained, method, fraction)
        cosine = float(np.mean(cosines_of(dense, found)))
        return {**stats, "cosine": cosine, "spearman": spearman_of(dense, found)}

    name = f"encoder-{fraction}-{method.replace(' ', '-').replace(',', '')}"
    return kept(_TOPIC, name, VERSION, settings, make)


def _torch_pruning(trained: Trained, fraction: float) -> tuple[Any, Figures]:
    """Returns outputs on the compared texts; ratios are tried until the FLOPs are near."""
    sys.path.append(str(ROOT / ".models" / "rivals"))
    import torch

    try:
        import torch_pruning as tp
    except ModuleNotFoundError as error:
        raise models.ModelMissingError(
            "Torch-Pruning is missing. Fix: `make prune-models`"
        ) from error
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    bert = AutoModel.from_pretrained(source.folder(), local_files_only=True).eval()
    ids = torch.ones(1, 128, dtype=torch.int64)

    def flops(net: Any) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(ids, ids)
        return float(counter.get_total_flops())

    dense_flops, low, high = flops(source.SentenceEncoder(bert)), 0.0, 0.9
    best: tuple[float, Any, float] | None = None
    for _ in range(_TRIES):
        ratio = (low + high) / 2
        net = copy.deepcopy(bert)
        # what writes the hidden states, which are an output, keeps its width
        whole = [m for n, m in net.named_modules() if n.endswith("output.dense")]
        ignored = [*whole, net.embeddings, *([net.pooler] if net.pooler is not None else [])]
        wrapped = source.SentenceEncoder(net)
        pruner = tp.pruner.BasePruner(
            wrapped, (ids, ids), importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio, ignored_layers=ignored, num_heads=dict(heads_of(net)),
        )  # fmt: skip
        pruner.step()
        mend_heads(net, pruner.num_heads)
        left = flops(wrapped) / dense_flops
        if best is None or abs(left - fraction) < abs(best[0] - fraction):
            best = (left, wrapped, ratio)
        if abs(left / fraction - 1) <= _CLOSE:
            break
        low, high = (ratio, high) if left > fraction else (low, ratio)
    assert best is not None, "there are tries"
    with torch.no_grad():
        rows = [
            best[1](*(torch.from_numpy(sample[name]) for name in ("input_ids", "attention_mask")))
            for sample in trained.compare
        ]
    found = np.concatenate([row["embedding"].numpy() for row in rows]).astype(np.float64)
    return found, {"achieved": best[0], "ratio": best[2]}


def _encoder(fraction: float, settings: Settings) -> Iterator[Row]:
    runs = {name: _sentences(name, fraction, settings) for name in (*METHODS, TORCH_PRUNING)}
    for name, run in runs.items():
        note = f"achieved {run['achieved']:.4g}"
        if "error-repaired" in run:
            note += f", error {run['error-pruned']:.3g} to {run['error-repaired']:.3g}"
        what = f"sentence encoder, {fraction:.0%} of the FLOPs, {name}"
        yield shown(f"{what}: cosine", run["cosine"], "", note)
        yield shown(f"{what}: Spearman of pairs", run["spearman"], "")
    for name in (L2, TORCH_PRUNING):
        for figure in ("cosine", "spearman"):
            gain = runs[OURS][figure] - runs[name][figure]
            what = f"sentence encoder, {fraction:.0%}: {figure} above {name}"
            yield at_least(what, gain, 0.0, "", "both without training")


def _photographs(settings: Settings) -> Iterator[Row]:
    def make() -> Figures:
        vision_ops.declare()
        trained = mobilenet()
        dense = outputs_of(trained.module, trained.compare)
        made: Figures = {}
        for method in METHODS:
            found, stats = _pruned(trained, method, FRACTIONS[0])
            agree = float((dense.argmax(1) == found.argmax(1)).mean())
            cosine = float(np.mean(cosines_of(dense, found)))
            made[method] = {**stats, "cosine": cosine, "agree": agree}
        return made

    runs = kept(_TOPIC, "mobilenet-0.8", VERSION, settings, make)
    for method, run in runs.items():
        note = f"same class as dense {run['agree']:.0%}, achieved {run['achieved']:.4g}"
        yield shown(f"MobileNetV2, 80 %, {method}: cosine", run["cosine"], "", note)
    gain = runs[OURS]["cosine"] - runs[PLAIN]["cosine"]
    yield at_least("MobileNetV2, 80 %: cosine that repair brings", gain, 0.0, "")


def _detector(settings: Settings) -> Iterator[Row]:
    def make() -> Figures:
        model = next(item for item in models.CORE if item.name == "ppocr-det")
        module = regraft.load(models.find(model))
        regraft.apply(module, "canonicalize,fuse,canonicalize", check="off")
        others = [sample for seed in (1, 2, 3) for sample in models.samples(model, seed)]
        dense = OrtRunner(to_proto(module, profile="ort-cpu"))
        made: Figures = {}
        for method, prune in METHODS.items():
            pruned = module.clone()
            ctx = Context(samples=models.samples(model), activations=OrtActivations())
            result = replace(prune, target=f"flops:{FRACTIONS[0]}").run(pruned, ctx)
            runner = OrtRunner(to_proto(pruned, profile="ort-cpu"))
            made[method] = {**result.stats, "cosine": closeness(dense, runner, others)[0]}
        return made

    runs = kept(_TOPIC, "detector-0.8", VERSION, settings, make)
    for method, run in runs.items():
        note = f"achieved {run['achieved']:.4g}"
        yield shown(f"text detector, 80 %, {method}: cosine", run["cosine"], "", note)
    gain = runs[OURS]["cosine"] - runs[PLAIN]["cosine"]
    yield at_least("text detector, 80 %: cosine that repair brings", gain, 0.0, "")


MEASUREMENTS: tuple[Measurement, ...] = (
    *(
        Measurement(
            f"encoder-{fraction}", f"the sentence encoder at {fraction:.0%}",
            partial(_encoder, fraction),
        )
        for fraction in FRACTIONS
    ),
    Measurement("photographs", "MobileNetV2 at 80 %", _photographs),
    Measurement("detector", "the text detector at 80 %", _detector),
)  # fmt: skip
