"""Experts of captured PyTorch models at their start, family by family."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import regraft
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most
from benchmarks.moe_identity import worst_difference
from regraft.ir.evaluate import evaluate
from regraft.passes.experts.partition_ffn import PartitionFfn
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context, Pass

_FAMILIES = (
    "bert", "distilbert", "electra", "albert", "mpnet", "modernbert", "gpt2", "gpt_bigcode",
    "gpt_neox", "opt", "bloom", "falcon", "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3",
    "t5", "bart", "whisper", "wav2vec2", "vit", "deit", "beit", "dinov2", "swin", "convnext",
    "clip", "siglip",
)  # fmt: skip
_STARTS: dict[str, Pass] = {
    "copy": UpcycleFfn(experts=4),
    "virtual groups": UpcycleFfn(method="virtual-groups", experts=8, top_k=4, groups=2),
    "parts, all on": PartitionFfn(experts=4, shared=1, router="mean"),
}


def _captured(settings: Settings) -> Iterator[Row]:
    from benchmarks.fixtures import vision_ops  # imports torch

    vision_ops.declare()
    from benchmarks.fixtures.capture_models import MODELS

    warnings.filterwarnings("ignore")  # deprecations between these packages
    logging.disable(logging.ERROR)
    count = 0
    for model in MODELS:
        if model.name not in _FAMILIES:
            continue
        given = {**model.sample({}, 0), **model.fixed}
        module = regraft.capture(model.build(), (), given)
        regraft.apply(module, "canonicalize,fuse", check="off")
        sample = {str(value.name): given[str(value.name)].numpy() for value in module.graph.inputs}
        # two orders of the same sums in f32 differ by what each of them rounds
        own = worst_difference(evaluate(module, sample), evaluate(module, sample, oracle=True))
        narrow, wide, blocks = 0.0, 0.0, 0
        for upcycle in _STARTS.values():
            changed = module.clone()
            blocks = int(upcycle.run(changed, Context()).stats["blocks"])
            got, want = (evaluate(each, sample) for each in (changed, module))
            narrow = max(narrow, worst_difference(got, want))
            got, want = (evaluate(each, sample, oracle=True) for each in (changed, module))
            wide = max(wide, worst_difference(got, want))
        count += blocks > 0
        note = f"{blocks} blocks; {', '.join(_STARTS)}; rounding of the dense model {own:.1e}"
        bar = max(1e-6, 2 * own)
        yield at_most(f"{model.name}: worst difference in f32", narrow, bar, "relative", note)
        yield at_most(f"{model.name}: worst difference in f64", wide, 1e-12, "relative")
    yield at_least("captured families whose blocks become experts", count, 20, "families")


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("captured", "upcycled PyTorch models at their start", _captured),
)
