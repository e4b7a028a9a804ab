"""`audit` of a model with experts, as data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UsageError
from regraft.ir.module import Module
from regraft.passes.cleanup import Canonicalize
from regraft.passes.experts.audit import active_fraction, expert_figures
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context, Samples


def audit_experts(module: Module, samples: Samples) -> dict[str, Any]:
    """Returns the document of `regraft audit` without `--against`.

    Args:
        module: The module.
        samples: What it runs on: data of the kind that the model is for.

    Raises:
        UsageError: Without samples, or where there are no experts to speak of.
    """
    if not samples:
        raise UsageError("audit: there is no data", hint="give `--inputs` with samples of real use")
    fused = module.clone()
    Canonicalize().run(fused, Context())
    Fuse().run(fused, Context())
    layers, skipped = expert_figures(fused, samples, OrtActivations())
    if not layers:
        reasons = "; ".join(dict.fromkeys(each.reason for each in skipped))
        raise UsageError(
            f"audit: the model has no layer of experts that can be measured{reasons and ': '}"
            f"{reasons}",
            hint="`--against ORIGINAL` audits a linearized model",
        )
    return {
        "experts": [asdict(each) for each in layers],
        "active_fraction": active_fraction(layers),
        "skipped": [asdict(each) for each in skipped],
    }
