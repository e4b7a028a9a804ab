"""Layer after layer, what pruning took is made up for, as far as the layer can.

Layers are visited in the order of the graph. Each sees what the layers before it, repaired, now
give, and is solved for so that its result comes nearest to what it was before pruning; where the
result is added to a stream, so that the stream does. Errors are thereby not only those of the own
inputs that went, but of all before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic
from regraft.ir.ops.norm import batch_norm
from regraft.passes.protocol import ActivationSource, Samples
from regraft.passes.reconstruction.batch_norms import refresh
from regraft.passes.reconstruction.counterpart import Counterpart
from regraft.passes.reconstruction.frontier import Frontier
from regraft.passes.reconstruction.sites import Site, sites
from regraft.passes.reconstruction.solving import Change, Sums, best_change

Array = np.ndarray[Any, Any]
Method = Literal["bias", "reconstruct"]

_ANY_SIZE = 1 << 62

_MAX_ROWS = 8192
"""Rows of all samples that a layer is fitted to."""

_HELD_OUT = 4
"""Every so many-th item tells how strongly weights are kept, and whether a change helps."""

_UNCHANGED = 1e-9
"""What lacks less than this part of the target's energy is rounding."""

_WORTH_A_BIAS = 0.02
"""A bias is made where it takes away at least this part of what would be left without it."""


@dataclass(slots=True)
class Repaired:
    """What a walk did.

    Attributes:
        num_layers: Layers that were solved for.
        num_biases: Biases that were made.
        num_norms: Batch normalizations whose statistics were measured again.
        num_thin: Layers that were solved for on fewer rows than they have inputs.
        errors: By layer: relative error of its target before and after.
    """

    num_layers: int = 0
    num_biases: int = 0
    num_norms: int = 0
    num_thin: int = 0
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything was."""
        return bool(self.num_layers or self.num_norms)


def repair_layers(
    module: Module,
    before: Counterpart,
    source: ActivationSource,
    samples: Samples,
    method: Method,
    mask: str,
) -> Repaired:
    """Repairs every layer of the main graph that can be, in place.

    Args:
        module: The pruned module.
        before: What it was.
        source: Runs parts of both.
        samples: Inputs; none need labels.
        method: `bias` moves biases only.
        mask: Input that is nonzero where positions count, where the module has it.
    """
    done = Repaired()
    now = Frontier(module, source, samples)
    then = Frontier(before.module, source, samples)
    for place in list(_places(module)):
        value = place.result if isinstance(place, Site) else place.output
        node = place.node if isinstance(place, Site) else place
        if value not in before.values:
            continue
        now.forget(node)
        then.forget(_counterpart_node(before, node))
        masks = _masks(module, value, samples, mask)
        if isinstance(place, Site):
            _repair_site(module, place, before, now, then, masks, method, done)
        elif refresh(module, place, before, now, then):
            done.num_norms += 1
    return done


def _places(module: Module) -> Iterator[Site | Node]:
    """Iterates over layers and batch normalizations in the order of the graph."""
    found: dict[Node, Site | Node] = {site.node: site for site in sites(module)}
    for node in module.graph:
        if node in found:
            yield found[node]
        elif node.op is batch_norm and all(is_constant(v) for v in node.inputs[1:] if v):
            yield node


def _counterpart_node(before: Counterpart, node: Node) -> Node:
    maker = before.values[node.outputs[0]].producer
    assert maker is not None, "the copy of a node's result has a node"
    return maker


def _repair_site(
    module: Module,
    site: Site,
    before: Counterpart,
    now: Frontier,
    then: Frontier,
    masks: list[Array] | None,
    method: Method,
    done: Repaired,
) -> None:
    target, other = _stream(site.result)
    asked = [site.x] if other is None else [site.x, other]
    mine = now.values(asked)
    (theirs,) = then.values([before.values[target]])
    fit, held_out, energy = _sums(site, before, target, mine, theirs, masks)
    if fit is None:
        return
    whole = fit if held_out is None else fit + held_out
    if whole.rr.sum() <= _UNCHANGED * energy:
        return
    change = _change(site, fit, held_out, only_bias=method == "bias")
    judge = whole if held_out is None else held_out
    zero = Change(np.zeros_like(whole.xr), None)
    if not judge.error(change) < judge.error(zero):
        return
    if change.bias is not None and site.bias_at is None:
        done.num_biases += 1
    weight = site.matrix()
    if method != "bias":
        weight = weight + change.weight
    site.store(module, weight, change.bias)
    done.num_layers += 1
    done.num_thin += method != "bias" and whole.count < weight.shape[1]
    done.errors[site.name] = (
        float(whole.rr.sum() / energy), whole.error(change) / energy,
    )  # fmt: skip


def _change(site: Site, fit: Sums, held_out: Sums | None, *, only_bias: bool) -> Change:
    """Returns the change; a bias that is not there yet is made only where it is worth it."""
    form = site.form
    change = best_change(fit, held_out, with_bias=form.has_bias, only_bias=only_bias)
    if only_bias or site.bias_at is not None or not form.has_bias:
        return change
    without = best_change(fit, held_out, with_bias=False, only_bias=False)
    judge = fit if held_out is None else held_out
    is_worth = judge.error(change) < (1 - _WORTH_A_BIAS) * judge.error(without)
    return change if is_worth else without


def _stream(result: Value) -> tuple[Value, Value | None]:
    """Returns the value that a result should make right, and what is added to it on the way."""
    users = result.users
    if result.num_uses != 1 or len(users) != 1 or users[0].op is not arithmetic.add:
        return result, None
    user = users[0]
    other = user.inputs[1] if user.inputs[0] is result else user.inputs[0]
    if other is None or other is result or other.type != result.type:
        return result, None
    if user.output.type != result.type:
        return result, None
    return user.output, other


def _sums(
    site: Site,
    before: Counterpart,
    target: Value,
    mine: list[list[Array]],
    theirs: list[Array],
    masks: list[Array] | None,
) -> tuple[Sums | None, Sums | None, float]:
    """Returns the sums over rows to fit and over those held out, and the target's energy."""
    weight = site.matrix()
    bias = _bias(site, weight)
    fit: Sums | None = None
    held_out: Sums | None = None
    energy, first = 0.0, 0
    cap = max(_MAX_ROWS // len(theirs), 64)
    for idx, wanted in enumerate(theirs):
        goal = before.kept(target, wanted).astype(np.float32)
        if len(mine) > 1:
            goal = goal - mine[1][idx]
        rows = _rows(site, goal, None if masks is None else masks[idx], cap, idx)
        items = site.form.items(goal)[rows] + first
        first += len(goal)
        x = site.form.inputs(mine[0][idx], goal, rows).astype(np.float32)
        y = site.form.results(goal, rows)
        lacking = y - (x @ weight.astype(np.float32) + bias)
        energy += float(np.square(site.form.results(before.kept(target, wanted), rows)).sum())
        is_held_out = items % _HELD_OUT == _HELD_OUT - 1
        for chosen in (False, True):
            picked = is_held_out == chosen
            if not picked.any():
                continue
            own = Sums.of(x[:, picked], lacking[:, picked])
            if chosen:
                held_out = own if held_out is None else held_out + own
            else:
                fit = own if fit is None else fit + own
    return fit, held_out, max(energy, 1e-30)


def _bias(site: Site, weight: Array) -> Array:
    """Returns the bias that is there, f32[G, 1, N] or a zero."""
    if site.bias_at is None:
        return np.zeros((), np.float32)
    node, idx = site.bias_at
    array = constant_of(node.inputs[idx], _ANY_SIZE)
    assert array is not None, "the bias is constant"
    columns = weight.shape[0] * weight.shape[2]
    wide = np.repeat(array.reshape(-1), columns // array.size)  # of a block, one for all its places
    return wide.reshape(weight.shape[0], 1, weight.shape[2]).astype(np.float32)


def _rows(site: Site, goal: Array, mask: Array | None, cap: int, idx: int) -> Array:
    """Returns the rows that are looked at: those that count, at most `cap` of them at random."""
    count = site.form.num_rows(goal)
    rows = np.arange(count)
    if mask is not None and mask.size and count % mask.size == 0:
        rows = np.flatnonzero(np.repeat(mask.reshape(-1) != 0, count // mask.size))
    if len(rows) <= cap:
        return rows
    return np.sort(np.random.default_rng(idx).choice(rows, cap, replace=False))


def _masks(module: Module, value: Value, samples: Samples, mask: str) -> list[Array] | None:
    """Returns the mask of every sample where its axes are leading ones of a value."""
    found = next((item for item in module.graph.inputs if item.name == mask), None)
    if found is None or found.shape is None or value.shape is None:
        return None
    rank = len(found.shape)
    if rank >= len(value.shape) or tuple(value.shape[:rank]) != tuple(found.shape):
        return None
    return [np.asarray(sample[mask]) for sample in samples]
