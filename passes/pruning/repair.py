"""What pruning took, made up for without training, and how much of it came back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.calibration.output_error import OutputError
from regraft.passes.protocol import Context
from regraft.passes.pruning.measured import samples_of
from regraft.passes.reconstruction.counterpart import Counterpart
from regraft.passes.reconstruction.walk import Method, repair_layers

Repair = Literal["auto", "none", "bias", "reconstruct"]

MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a repair did, for the report.

    Args:
        changed: Whether it was kept: what would make the outputs worse is undone.
        stats: Figures.
        errors: Relative error of every layer's target before and after.
    """

    changed: bool
    stats: dict[str, int | float] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


def method_of(repair: Repair, ctx: Context) -> Method | None:
    """Returns how to repair, None for not at all: `auto` repairs where the user gave samples."""
    match repair:
        case "none":
            return None
        case "auto":
            return "reconstruct" if ctx.activations is not None and ctx.samples else None
        case "bias" | "reconstruct":
            return repair


def repair(module: Module, before: Counterpart, ctx: Context, method: Method) -> Outcome:
    """Repairs a pruned module in place, on samples or else on generated inputs.

    Raises:
        UsageError: Without samples or a source of activations.
    """
    samples, source = samples_of(ctx), ctx.activations
    if source is None:
        raise UsageError(
            "pass `prune`, option `repair`: it needs values, and nothing here runs the module",
            hint="use it in `regraft convert`, or repair=none",
        )
    outputs = OutputError(before.module, source, samples, "pass `prune`")
    lost = outputs.error(module)
    snapshot = module.clone()
    done = repair_layers(module, before, source, samples, method, MASK)
    left = outputs.error(module) if done.changed else lost
    stats: dict[str, int | float] = {
        "error-pruned": round(lost, 6),
        "error-repaired": round(min(left, lost), 6),
    }
    if not left < lost:
        module.restore(snapshot)
        return Outcome(False, stats | {"repaired-layers": 0})
    stats |= {
        "repaired-layers": done.num_layers,
        "created-biases": done.num_biases,
        "measured-norms": done.num_norms,
    }
    if done.num_thin:
        module.warnings.append(
            f"pass `prune`: {done.num_thin} of {done.num_layers} layers were repaired on fewer "
            "rows (tokens, places of images) than they have inputs, so that other data may gain "
            "less than the samples did: give more of them, or `repair=bias`"
        )
    return Outcome(True, stats, done.errors)
