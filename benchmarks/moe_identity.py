"""Experts at their start: what upcycled models lose, over the fixtures of recognition.

Every fixture with a feed-forward block is one family and exporter; the differences are those of our
evaluation, in f32 and in f64, and of ONNX Runtime on the written file against the source's.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

import regraft
from benchmarks.fixtures import store
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.onnx.save import to_proto
from regraft.ir.constants import constant_of
from regraft.ir.evaluate import evaluate
from regraft.ir.module import Module
from regraft.ir.ops import moe
from regraft.ir.weights import ArrayWeight
from regraft.passes.experts.partition_ffn import PartitionFfn
from regraft.passes.experts.upcycle_ffn import UpcycleFfn
from regraft.passes.protocol import Context

Outputs = dict[str, np.ndarray[Any, Any]]

_STARTS: dict[str, UpcycleFfn | PartitionFfn] = {
    "copy": UpcycleFfn(experts=4),
    **{
        f"virtual groups, G={groups}": UpcycleFfn(
            method="virtual-groups", groups=groups, experts=4 * groups, top_k=2 * groups
        )
        for groups in (1, 2, 4, 8)
    },
    "adapters": UpcycleFfn(experts=4, method="adapter", rank=8),
    "lora": UpcycleFfn(experts=4, method="lora", rank=8),
    "parts, all on": PartitionFfn(experts=4, shared=1, router="mean"),
    "unequal parts, all on": PartitionFfn(experts=5, method="random", sizes="rising"),
}
_F32, _F64 = 1e-6, 1e-12
_FLOOR = 1.5
"""Where a difference in f32 exceeds the bar: times what another order of a sum makes."""
_ORDERS = 8
"""Orders of hidden channels that this is the largest of: one is a draw of rounding errors."""


def worst_difference(got: Outputs, want: Outputs) -> float:
    """Returns the largest difference relative to the largest number of its output."""
    return max(
        float(np.abs(got[name].astype(np.float64) - array).max() / (np.abs(array).max() or 1))
        for name, array in want.items()
        if array.dtype.kind == "f" and array.size
    )


def _reordered(module: Module, sample: Outputs) -> float:
    """Returns the largest difference that other orders of the hidden channels of blocks make.

    The blocks are as they were, but for the order in which their last products are summed: no
    rewrite of a block can be nearer than f32 lets this be.
    """
    single, want = module.clone(), evaluate(module, sample)
    UpcycleFfn(experts=1, top_k=1).run(single, Context())
    found = 0.0
    for order in range(_ORDERS):
        changed = single.clone()
        for node in (node for node in changed.graph if node.op is moe.moe):
            names = [each.name for each in moe.moe.operands]
            rng, perm = np.random.default_rng(order), None
            for name, value in list(zip(names, node.inputs, strict=False))[2:]:
                array = None if value is None else constant_of(value, 1 << 40)
                if value is None or array is None or name == "down_bias" or len(array) > 1:
                    continue
                perm = rng.permutation(array.shape[1]) if perm is None else perm
                moved = array[..., perm] if name == "down" else array[:, perm]
                assert value.producer is not None, "an expert's weight is a constant"
                changed.weights.set(value.producer.attrs["name"], ArrayWeight(moved))
        found = max(found, worst_difference(evaluate(changed, sample), want))
    return found


def _fused(name: str) -> Module:
    module = regraft.load(store.load(name))
    regraft.apply(module, "canonicalize,fuse", check="off")
    return module


def _identity(settings: Settings) -> Iterator[Row]:
    families: set[str] = set()
    blocks, over = 0, []
    left: Counter[str] = Counter()
    narrow: dict[str, float] = dict.fromkeys(_STARTS, 0.0)
    wide = dict(narrow)
    for name in store.names():
        module, sample = _fused(name), store.samples(name)
        want = [evaluate(module, sample, oracle=oracle) for oracle in (False, True)]
        floor = None
        for start, upcycle in _STARTS.items():
            changed = module.clone()
            result = upcycle.run(changed, Context())
            if start == "copy":
                left.update(skip.reason for skip in result.skipped)
                blocks += int(result.stats["blocks"])
            if not result.changed:
                continue
            families.add(name.partition(".")[0])
            error = worst_difference(evaluate(changed, sample), want[0])
            wide[start] = max(
                wide[start], worst_difference(evaluate(changed, sample, oracle=True), want[1])
            )
            if error > _F32:
                floor = _reordered(module, sample) if floor is None else floor
                over.append((name, start, error, floor))
                continue
            narrow[start] = max(narrow[start], error)
    yield at_least("families with a block that becomes experts", len(families), 25, "families")
    yield shown("blocks that become experts", blocks, "blocks")
    for reason, count in left.most_common():
        yield shown(f"blocks left alone: {reason}", count, "blocks")
    for start in _STARTS:
        yield at_most(f"{start}: worst difference in f32", narrow[start], _F32, "relative")
        yield at_most(f"{start}: worst difference in f64", wide[start], _F64, "relative")
    yield held(
        f"f32 differences over {_F32:g} are within {_FLOOR:g} times those of reordered sums",
        all(error <= _FLOOR * floor for _, _, error, floor in over),
        "; ".join(
            f"{name}, {start}: {error:.1e}, reordered {floor:.1e}"
            for name, start, error, floor in over
        ),
    )


def _written(settings: Settings) -> Iterator[Row]:
    """ONNX Runtime against itself on the source file."""
    for name, profile in itertools.product(
        ("opt.dyn18", "gpt2.ts17", "llama.dyn18", "bert.ts17", "vit.dyn18", "convnext.ts17"),
        ("ort-cpu", "onnx"),
    ):
        proto, sample = store.load(name), store.samples(name)
        module = regraft.load(proto)
        # with its checks: the contract of the pass is exact
        regraft.apply(module, "canonicalize,fuse,upcycle-ffn{experts=8,top-k=2}")
        made = to_proto(module, profile=profile)
        error = worst_difference(OrtRunner(made)(sample), OrtRunner(proto)(sample))
        kernel = any(node.op_type == "MoE" for node in made.graph.node)
        yield at_most(
            f"{name} for {profile}: ONNX Runtime before and after", error, _F32, "relative",
            "kernel `MoE`" if kernel else "standard operators",
        )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("identity", "upcycled models at their start, over all fixtures", _identity),
    Measurement("written", "the same as files for ONNX Runtime", _written),
)
