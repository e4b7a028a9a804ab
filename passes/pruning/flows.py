"""Scores of units from what flows through them into products with weights.

With `x_u` what a unit carries and `w_u` the weights that it is multiplied by:

- `wanda`: `|x_u| Σ |w_u|`, with the root mean square of `x_u` (Sun et al., Wanda, 2024);
- `fluctuation`: `Var[x_u] Σ w_u²`, what is lost when the mean of the unit goes into a bias (An et
  al., FLAP, 2024);
- `obs`: what a product loses when the unit goes and the others make up for it by least squares,
  over what it computes (OBSPA, of Wang et al., 2024): the score that goes with `repair`;
- `sequential`: how early the unit is chosen by sequential attention (`sequential.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from regraft.ir.constants import constant_of, is_constant
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.passes.analysis.coupling.groups import Coupling, Group
from regraft.passes.analysis.coupling.positions import unit_of
from regraft.passes.analysis.coupling.spaces import Space, leaves_of
from regraft.passes.protocol import Context, Samples
from regraft.passes.pruning.energy import Place, by_unit, energy_shares, sums_of
from regraft.passes.pruning.measured import Slots, samples_of
from regraft.passes.pruning.sequential import selection_order
from regraft.passes.reconstruction.sites import Matrix, Site, sites
from regraft.passes.reconstruction.solving import obs_error

Array = np.ndarray[Any, Any]
FlowCriterion = Literal["wanda", "fluctuation", "sequential"]

_ANY_SIZE = 1 << 62
_MAX_ROWS = 4096
"""Rows of all samples that second moments are summed over."""

_DAMPING = 0.01
"""Of the mean of the diagonal, as the published method has it."""


def flow_slots(coupling: Coupling, ctx: Context, criterion: FlowCriterion) -> Slots:
    """Returns the score of every unit in every product that sums over it.

    Groups that no product of the main graph sums over have no slots. Without values, `sequential`
    comes here to say so.

    Raises:
        UsageError: Without a source of activations or samples.
    """
    sums = sums_of(coupling)
    moments = _moments(coupling, ctx, samples_of(ctx), sums, criterion)
    groups = {group.space: group for group in coupling.groups}
    slots: Slots = {group: [] for group in coupling.groups}
    for node, label, places in sums:
        sides = [
            _of_weight(value, axis, criterion) if is_constant(value) else moments[value, axis]
            for value, axis in places
        ]
        spaces = [coupling.axes(value)[axis] for value, axis in places]
        for leaf in dict.fromkeys(leaves_of(label)):
            if leaf in groups:
                name = node.output.name or node.op.name
                slots[groups[leaf]].append((name, _product(sides, spaces, groups[leaf])))
    return slots


def _of_weight(value: Value, axis: int, criterion: FlowCriterion) -> Array:
    array = constant_of(value, _ANY_SIZE)
    assert array is not None, "a constant"
    wide = np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1)
    return np.asarray((np.abs(wide) if criterion == "wanda" else np.square(wide)).sum(1))


def _product(sides: list[Array], spaces: list[Space], group: Group) -> Array:
    """Returns the product of what operands say, by unit: each the mean over its positions."""
    total = np.ones(group.num_blocks * group.size)
    for side, space in zip(sides, spaces, strict=True):
        summed, count = by_unit(side, space, group)
        total *= summed / np.maximum(count, 1)
    return total


def _moments(
    coupling: Coupling,
    ctx: Context,
    samples: Samples,
    sums: list[tuple[Node, Space, list[Place]]],
    criterion: FlowCriterion,
) -> Mapping[Place, Array]:
    """Returns root mean squares, or variances, of values by position of an axis."""
    wanted = list(
        dict.fromkeys(
            (value, axis) for _, _, places in sums for value, axis in places
            if not is_constant(value)
        )
    )  # fmt: skip
    if ctx.activations is None:
        raise UsageError(
            f"pass `prune`, option `criterion`: `{criterion}` needs values, and there is no source",
            hint="use it in `regraft convert`, or criterion=l2",
        )
    totals: dict[Place, list[Array]] = {place: [] for place in wanted}
    values = list(dict.fromkeys(value for value, _ in wanted))
    for found in ctx.activations.activations(coupling.module, values, samples) if values else ():
        for value, axis in wanted:
            array = found[value].astype(np.float64)
            others = tuple(i for i in range(array.ndim) if i != axis)
            count = np.full(array.shape[axis], array.size / max(array.shape[axis], 1))
            totals[value, axis].append(
                np.stack([count, array.sum(others), np.square(array).sum(others)])
            )
    result: dict[Place, Array] = {}
    for place, parts in totals.items():
        count, total, square = np.sum(parts, 0)
        mean_square = square / np.maximum(count, 1)
        if criterion == "wanda":
            result[place] = np.sqrt(mean_square)
        else:
            mean = total / np.maximum(count, 1)
            result[place] = np.maximum(mean_square - np.square(mean), 0.0)
    return result


def obs_shares(coupling: Coupling, ctx: Context, samples: Samples) -> dict[Group, Array]:
    """Returns what the products lose when a unit goes and the others make up for it, relative.

    Products that are no layer with a weight of its own count with the unit's energy.

    Raises:
        UsageError: Without a source of activations.
    """
    if ctx.activations is None:
        return energy_shares(coupling, ctx, samples)  # says what is missing
    exact: dict[tuple[Node, Group], Array] = {}
    asked = _layers_of_groups(coupling)
    moments = _second_moments(coupling, ctx, samples, list(dict.fromkeys(s for s, _ in asked)))
    for site, group in asked:
        found = _obs_share(coupling, site, group, moments[site])
        if found is not None:
            exact[site.node, group] = found
    return energy_shares(coupling, ctx, samples, exact)


def sequential_slots(coupling: Coupling, ctx: Context, samples: Samples) -> Slots:
    """Returns how early every layer chooses its units by sequential attention, 1 for the first.

    Groups that no layer with a weight of its own sums over have no slots.
    """
    slots: Slots = {group: [] for group in coupling.groups}
    asked = _layers_of_groups(coupling)
    moments = _second_moments(coupling, ctx, samples, list(dict.fromkeys(s for s, _ in asked)))
    for site, group in asked:
        blocks = _blocks(coupling, site, group)
        if blocks is None:
            continue
        gram = moments[site]
        order = selection_order(gram, gram @ site.matrix()[0], blocks, len(blocks))
        early = np.empty(len(blocks))
        early[order] = 1 - np.arange(len(blocks)) / len(blocks)
        slots[group].append((site.name, early))
    return slots


def _layers_of_groups(coupling: Coupling) -> list[tuple[Site, Group]]:
    """Returns the layers, of one block of channels, that sum over groups."""
    layers = {site.node: site for site in sites(coupling.module)}
    groups = {group.space: group for group in coupling.groups}
    found: list[tuple[Site, Group]] = []
    for node, label, _ in sums_of(coupling):
        site = layers.get(node)
        if site is not None and site.matrix().shape[0] == 1:
            found += [
                (site, groups[leaf]) for leaf in dict.fromkeys(leaves_of(label)) if leaf in groups
            ]
    return found


def _second_moments(
    coupling: Coupling, ctx: Context, samples: Samples, layers: list[Site]
) -> dict[Site, Array]:
    """Returns XᵀX f64[K, K] of every layer."""
    totals: dict[Site, Array] = {}
    if ctx.activations is None or not layers:
        return totals
    values = list(dict.fromkeys(v for site in layers for v in (site.x, site.node.output)))
    cap = max(_MAX_ROWS // len(samples), 16)
    for idx, found in enumerate(ctx.activations.activations(coupling.module, values, samples)):
        for site in layers:
            result = found[site.node.output]
            count = site.form.num_rows(result)
            rows = np.arange(count)
            if count > cap:
                rows = np.sort(np.random.default_rng(idx).choice(count, cap, replace=False))
            x = site.form.inputs(found[site.x], result, rows)[0].astype(np.float32)
            totals[site] = totals.get(site, 0.0) + (x.T @ x).astype(np.float64)
    return totals


def _obs_share(coupling: Coupling, site: Site, group: Group, moments: Array) -> Array | None:
    """Returns the share of every unit in a layer, None where units differ in their inputs."""
    blocks = _blocks(coupling, site, group)
    if blocks is None:
        return None
    weight = site.matrix()[0]
    damping = _DAMPING * max(float(np.einsum("kk->k", moments).mean()), 1e-30)
    whole = float(((weight.T @ moments) * weight.T).sum())
    damped = moments + damping * np.eye(len(weight))
    return obs_error(weight, damped, blocks) / max(whole, 1e-30)


def _blocks(coupling: Coupling, site: Site, group: Group) -> Array | None:
    """Returns the inputs of every unit, i64[U, P], None where units differ in how many."""
    channel_axis = site.x.rank - 1 if isinstance(site.form, Matrix) and site.x.rank else 1
    units = unit_of(coupling.axes(site.x)[channel_axis], group.space)
    units = np.repeat(units, site.matrix().shape[1] // len(units))  # a channel's taps lie together
    held = np.flatnonzero(units >= 0)
    count = group.num_blocks * group.size
    if (np.bincount(units[held], minlength=count) * count != len(held)).any():
        return None
    return held[np.argsort(units[held], kind="stable")].reshape(count, -1)
