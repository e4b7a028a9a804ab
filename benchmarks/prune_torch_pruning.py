"""What Torch-Pruning makes of a model of `prune_subjects`, without hints and with.

It takes a ratio of channels, not of FLOPs: ratios are tried, nearer and nearer to half of the
FLOPs, while the time of the model lasts, and the best result that runs counts. It has to be told
which layers not to touch: those whose width is that of an output. With hints it is told the heads
of every attention as well, and their attributes are mended afterwards, as its examples do.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.prune_attempts import (
    CLOSE,
    MAX_RATIOS,
    STARTS,
    guarded,
    next_ratio,
    positional,
    shapes,
)
from benchmarks.prune_kept import read
from benchmarks.prune_masking import largest_difference, masked
from benchmarks.prune_once import LIMIT_S, TARGET, PastLimitError, count_flops, limited
from benchmarks.prune_subjects import Subject, subject

JOINED = ("qkv", "query_key_value", "qkv_proj", "Wqkv", "c_attn")
APART = (
    ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"), ("query_proj", "key_proj", "value_proj"),
)  # fmt: skip
HEADS = ("num_heads", "num_attention_heads", "n_heads", "num_key_value_heads")
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "dim_per_head")
ALL_SIZES = ("all_head_size", "inner_dim", "attn_dim")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One ratio: what was pruned, the part of the FLOPs that is left, and the outputs."""

    net: Any
    flops: float
    outputs: Any


def measure_zero_config(name: str) -> dict[str, Any]:
    """Returns what Torch-Pruning makes of a model without hints."""
    return guarded(name, lambda row: _torch_pruning(row, name, hints=False))


def measure_hints(name: str) -> dict[str, Any]:
    """Returns what Torch-Pruning makes of a model with the recipe of its examples.

    Hints take no part in its search for groups: where that ran past the limit without them, it is
    not run again.
    """
    without: dict[str, Any] = read().get(("torch-pruning", name), {}).get("row", {})
    if without.get("searched") is False and "PastLimitError" in without.get("reason", ""):
        return without
    return guarded(name, lambda row: _torch_pruning(row, name, hints=True))


def _torch_pruning(row: dict[str, Any], name: str, *, hints: bool) -> None:
    dense = subject(name)
    dense_flops, outputs = count_flops(lambda: dense.call(dense.net))
    row["stage"] = "prune"
    search = _Search(dense, outputs, dense_flops, hints)
    start = time.process_time()
    try:
        with limited(LIMIT_S):
            search.run()
    except PastLimitError as error:
        search.failure = error
    row["seconds"] = round(time.process_time() - start, 2)
    row["searched"] = search.searched
    best = search.best
    if best is None:
        raise search.failure or AssertionError("no result has the shapes of the original")
    row["runs"], row["stage"] = True, "compare"
    row["counted"] = best.flops
    row["shape"] = shapes(best.outputs) == shapes(outputs)
    if row["shape"]:
        expected = masked(dense.net, best.net)
        if expected is None:
            row["unjudged"] = "kept positions cannot be told from the weights"
        else:
            row["error"] = largest_difference(dense.call(expected), best.outputs)
    row["stage"] = "done"


@dataclass(slots=True)
class _Search:
    """Tries ratios on copies of a model; keeps the one that runs with FLOPs nearest to the target.

    Args:
        dense: The model.
        outputs: Its outputs.
        dense_flops: Its FLOPs.
        hints: Whether the tool is told the heads.
        best: The best attempt so far.
        failure: What the last attempt that failed raised.
        known: The part of the FLOPs that is left, by ratio.
        searched: Whether its search for groups came to an end.
    """

    dense: Subject
    outputs: Any
    dense_flops: float
    hints: bool
    best: Attempt | None = None
    failure: BaseException | None = None
    known: dict[float, float] = field(default_factory=dict)
    searched: bool = False

    def run(self) -> None:
        """Closes in on the target from the first ratio that works."""
        if not any(self._try(ratio) for ratio in STARTS):
            return
        for _ in range(MAX_RATIOS):
            ratio = next_ratio(self.known)
            if self.best is None or _miss(self.best) <= CLOSE or ratio in self.known:
                return
            if not self._try(ratio):
                return

    def _try(self, ratio: float) -> bool:
        net = copy.deepcopy(self.dense.net)
        try:
            pruner = _pruner(replace(self.dense, net=net), ratio, self.outputs, hints=self.hints)
            self.searched = True
            pruner.step()
            if self.hints:
                mend_heads(net, pruner.num_heads)
            net.eval().requires_grad_(requires_grad=False)
            flops, found = count_flops(lambda: self.dense.call(net))
        except Exception as error:  # the tool's error is what the table shows
            self.failure = error
            return False
        attempt = Attempt(net, flops / self.dense_flops, found)
        self.known[ratio] = attempt.flops
        if shapes(found) == shapes(self.outputs) and (
            self.best is None or _miss(attempt) < _miss(self.best)
        ):
            self.best = attempt
        return True


def _miss(attempt: Attempt) -> float:
    return abs(attempt.flops / TARGET - 1)


def _pruner(it: Subject, ratio: float, outputs: Any, *, hints: bool) -> Any:
    """Returns the tool's pruner, which has searched for groups by then."""
    import torch_pruning as tp

    widths = {shape[-1] for shape in shapes(outputs)} | {
        shape[1] for shape in shapes(outputs) if len(shape) == 4
    }
    ignored = [
        module
        for module in it.net.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) in widths
    ]
    heads = dict(heads_of(it.net)) if hints else {}
    grouped = hints and any(hasattr(module, "num_key_value_groups") for module in it.net.modules())
    options: dict[str, Any] = {"num_heads": heads} if hints else {}
    if grouped:  # what its example of language models does
        options |= {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": ratio}
    it.net.requires_grad_(requires_grad=True)  # the graph is traced through autograd
    return tp.pruner.BasePruner(
        positional(it), it.sample, importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, ignored_layers=ignored, **options,
    )  # fmt: skip


def heads_of(net: Any) -> Iterator[tuple[Any, int]]:
    """Yields the projections of every attention with the number of their heads."""
    for module in net.modules():
        count = next((getattr(module, name) for name in HEADS if hasattr(module, name)), None)
        config = getattr(module, "config", None)
        if not isinstance(count, int):
            count = getattr(config, "num_attention_heads", None)
        if not isinstance(count, int):
            continue
        for names in (*((name,) for name in JOINED), *APART):
            found = [getattr(module, name, None) for name in names]
            if all(hasattr(item, "out_features") for item in found):
                keys = getattr(config, "num_key_value_heads", None) or count
                yield from zip(found, (count, keys, keys), strict=False)


def mend_heads(net: Any, heads: Mapping[Any, int]) -> None:
    """Writes numbers and sizes of heads after pruning, as the examples of the tool do."""
    for module in net.modules():
        for names in (*((name,) for name in JOINED), *APART):
            found: list[Any] = [getattr(module, name, None) for name in names]
            if found[0] not in heads:
                continue
            count, width = heads[found[0]], found[0].out_features // (3 if len(names) == 1 else 1)
            values = (
                *((name, count) for name in HEADS[:3]),
                *((name, width // count) for name in HEAD_SIZES),
                *((name, width) for name in ALL_SIZES),
            )
            for name, value in values:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, value)
            if len(found) > 1 and hasattr(module, "num_key_value_groups"):
                module.num_key_value_groups = count // heads[found[1]]
