"""The real sentence encoder with its blocks as parts: cosine and latency against what is active.

Half of the texts calibrate, the others are compared. Nothing is trained. Latencies are those of
ONNX Runtime on one thread, interleaved with the dense model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import Measurement, Row, Settings, at_least, held, shown
from benchmarks.moe_small import TOPIC
from regraft.ir.module import Module
from regraft.passes.experts.partition_ffn import PartitionFfn
from regraft.passes.protocol import Context

_VERSION = 3
EXPERTS = 8
CHOSEN = (8, 7, 6, 5, 4, 3, 2)
_PARTS = PartitionFfn(experts=EXPERTS, method="coactivation", compensate=True)
_SAME = 0.9999
_ROUNDS, _TOKENS = 15, (16, 128)


def parts(top_k: int, settings: Settings) -> Figures:
    """Returns cosines of outputs and latencies of the encoder with `top_k` of its experts."""

    def make() -> Figures:
        from benchmarks.fixtures import vision_ops

        vision_ops.declare()
        from benchmarks.prune_trained_torch import cosines_of, outputs_of, sentences
        from regraft.backends.onnx.activations import OrtActivations

        trained = sentences()
        dense = outputs_of(trained.module, trained.compare)
        module = trained.module.clone()
        ctx = Context(samples=trained.calibrate, activations=OrtActivations())
        start = time.process_time()
        result = replace(_PARTS, top_k=top_k).run(module, ctx)
        spent = time.process_time() - start
        cosine = float(np.mean(cosines_of(dense, outputs_of(module, trained.compare))))
        found: Figures = {"cosine": cosine, "cpu_s": spent, **result.stats}
        for tokens in _TOKENS:
            sample = {name: array[:1, :tokens] for name, array in trained.compare[0].items()}
            found[f"latency-{tokens}"] = _ratio(trained.module, module, sample)
        return found

    return kept(TOPIC, f"encoder-{top_k}", _VERSION, settings, make)


def _ratio(dense: Module, module: Module, sample: dict[str, Any]) -> float:
    """Returns the median of a round's latency over the dense model's, one thread."""
    import onnxruntime as ort

    from regraft.backends.onnx import to_proto

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # the runtime tells of constants that it folded
    sessions = [
        ort.InferenceSession(
            to_proto(each, profile="ort-cpu").SerializeToString(), options,
            providers=["CPUExecutionProvider"],
        )
        for each in (dense, module)
    ]  # fmt: skip
    ratios = []
    for _ in range(_ROUNDS):
        spent = []
        for session in sessions:
            start = time.perf_counter()
            session.run(None, sample)
            spent.append(time.perf_counter() - start)
        ratios.append(spent[1] / spent[0])
    return float(np.median(ratios[2:]))


def _encoder(settings: Settings) -> Iterator[Row]:
    found = {top_k: parts(top_k, settings) for top_k in CHOSEN}
    for top_k, each in found.items():
        note = ", ".join(
            f"{each[f'latency-{tokens}']:.2f} of the dense latency with {tokens} tokens"
            for tokens in _TOKENS
        )
        what = f"encoder, {top_k / EXPERTS:.0%} of its blocks active: cosine"
        if top_k == EXPERTS:
            yield at_least(what, each["cosine"], _SAME, "", note)
        else:
            yield shown(what, each["cosine"], "", note)
    curve = [found[top_k]["cosine"] for top_k in CHOSEN]
    yield held("encoder: less active, less like the dense model", curve == sorted(curve)[::-1])
    yield shown(
        "encoder: partition of six blocks", found[CHOSEN[1]]["cpu_s"], "s of processor time"
    )


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("encoder", "the real encoder as parts: cosine and latency", _encoder),
)

if __name__ == "__main__":
    own = Settings(python=sys.executable, peers_python=sys.executable, timeout_s=0, rounds=1)
    for count in CHOSEN:
        print(count, parts(count, own), flush=True)
