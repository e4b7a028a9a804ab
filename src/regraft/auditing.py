"""`audit`: what a linearized model really does, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops.attention import attention
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.passes import quality
from regraft.passes.check.runners import Runner
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.linearization.audit import Ablation, ablated, layer_figures, mixers
from regraft.passes.linearization.canonicalize_recurrence import CanonicalizeRecurrence
from regraft.passes.linearization.probe import Probe
from regraft.passes.linearization.verdict import Judged, Verdict, judge
from regraft.passes.protocol import Context, Samples

LOGITS, TOKENS, LABELS = "logits", "input_ids", "labels"
_SHORTEST_PERIOD = 20
_DISTANCE = 4
"""Tokens that a period is longer than what all windows together reach."""
COPIES = 2.0
"""An original copies that is so many times better than chance."""
_ABOVE_CHANCE = 0.1


def audit_module(student: Module, original: Module, samples: Samples) -> dict[str, Any]:
    """Returns the document of `regraft audit`.

    Args:
        student: The linearized module.
        original: The module before.
        samples: What both run on: text of the kind that the model is for.

    Raises:
        UsageError: Without samples or attention, or where modules do not fit each other.
    """
    if not samples:
        raise UsageError("audit: there is no data", hint="give `--inputs` with samples of real use")
    made = [module.clone() for module in (original, student)]
    for module in made:
        Canonicalize().run(module, Context())
        CanonicalizeRecurrence().run(module, Context())
        Fuse().run(module, Context())
    before, after = made
    nodes = mixers(after)
    if not nodes:
        raise UsageError(
            "audit: no attention was recognized in the model",
            hint="`regraft inspect` lists its blocks; the text form, `.rg`, keeps operators whole",
        )
    layers = layer_figures(before, after, samples, _runner)
    is_hybrid = any(node.op is hybrid_attention for node in nodes)
    is_linear = any(node.op is not attention for node in nodes)
    run = _runner(before)
    measured = _Loss(before, run, samples)
    kept = {str(each): measured.of(_runner(ablated(after, each))) for each in Ablation}
    report: dict[str, Any] = {
        "layers": [asdict(each) for each in layers],
        "measure": measured.name,
        "original": measured.of(run),
        "ablations": kept if is_hybrid else {"both": kept["both"]},
        "state_bytes": _total(layer.state_bytes for layer in layers),
        "kv_bytes_per_token": sum(layer.kv_bytes_per_token for layer in layers),
        "kept_kv_bytes_per_token": sum(layer.kept_kv_bytes_per_token for layer in layers),
        "caches": sum(layer.kept_kv_bytes_per_token > 0 for layer in layers),
    }
    judged = judge({each: kept[str(each)] for each in Ablation}) if is_hybrid else None
    report |= _judgement("data", judged, is_linear=is_linear)
    probe = _probe_of(before, nodes)
    if probe is not None:
        report["probe"] = _probed(probe, run, after, is_hybrid=is_hybrid, is_linear=is_linear)
    return report


def _runner(module: Module) -> Runner:
    return OrtRunner(to_proto(module))


def _total(sizes: Any) -> int:
    return sum(size for size in sizes if size is not None)


class _Loss:
    """What is lost on data.

    Of language models the part of `labels` that are missed, where samples have them, else nats per
    token; of others the error of the outputs.
    """

    def __init__(self, original: Module, run: Runner, samples: Samples) -> None:
        self._samples = samples
        names = original.graph.output_names
        is_text = LOGITS in names and TOKENS in original.input_types
        self._has_labels = is_text and all(LABELS in sample for sample in samples)
        self.name = "error of the outputs"
        if is_text:
            self.name = "part of labels missed" if self._has_labels else "nats per token"
        self._wanted = None if is_text else [run(sample) for sample in samples]

    def of(self, run: Runner) -> float:
        """Returns it for a model."""
        if self._has_labels:
            return 1 - quality.accuracy(run, self._samples, next_token=True).accuracy
        if self._wanted is None:
            return math.log(quality.perplexity(run, self._samples).perplexity)
        errors = [
            _error(wanted, run(sample))
            for wanted, sample in zip(self._wanted, self._samples, strict=True)
        ]
        return float(np.mean(errors))


def _error(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    floats = [name for name in wanted if np.asarray(wanted[name]).dtype.kind == "f"]
    parts = [
        np.square(found[name] - wanted[name]).sum() / max(np.square(wanted[name]).sum(), 1e-30)
        for name in floats
    ]
    return float(np.mean(parts)) if parts else math.nan


def _judgement(where: str, judged: Judged | None, *, is_linear: bool) -> dict[str, Any]:
    if judged is None:
        return {"verdict": str(Verdict.LINEAR if is_linear else Verdict.SOFTMAX)}
    return {
        "verdict": str(judged.verdict),
        "linear_share": judged.linear_share,
        "window_share": judged.window_share,
    }


def _probe_of(original: Module, nodes: Sequence[Node]) -> Probe | None:
    """Returns the copy probe of a causal language model, None for others."""
    outputs = dict(zip(original.graph.output_names, original.graph.outputs, strict=True))
    logits = outputs.get(LOGITS)
    given = set(original.input_types) - {TOKENS, "attention_mask"}
    if logits is None or logits.shape is None or given:
        return None
    vocabulary = logits.shape[-1]
    if not isinstance(vocabulary, int):
        return None
    reach = sum(node.attrs["window"] for node in nodes if node.op is hybrid_attention)
    return Probe(max(_SHORTEST_PERIOD, reach + _DISTANCE), vocabulary)


def _probed(
    probe: Probe, run: Runner, after: Module, *, is_hybrid: bool, is_linear: bool
) -> dict[str, Any]:
    original = probe.accuracy(run)
    found: dict[str, Any] = {
        "period": probe.period, "chance": probe.chance, "original": original,
        "says": original > max(COPIES * probe.chance, _ABOVE_CHANCE),
    }  # fmt: skip
    kept = {each: probe.accuracy(_runner(ablated(after, each))) for each in Ablation}
    found["ablations"] = (
        {str(each): value for each, value in kept.items()}
        if is_hybrid
        else {"both": kept[Ablation.BOTH]}
    )
    judged = judge(kept, more_is_better=True) if is_hybrid else None
    return found | _judgement("probe", judged, is_linear=is_linear)
