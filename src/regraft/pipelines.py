"""The pipeline of a conversion: what was asked for, the default, what flags add, what it meets."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.onnx import PROFILES
from regraft.backends.onnx.legalize import TARGETS as LEGALIZED
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.module import Module
from regraft.ir.rewrite import Rule, RuleSet
from regraft.ir.types import DType
from regraft.passes import PASSES
from regraft.passes.cleanup.stops import without_stops
from regraft.passes.legalize import Legalize
from regraft.passes.pipeline import parse_pipeline, suggest
from regraft.passes.precision import Cast
from regraft.passes.protocol import Pass
from regraft.passes.rule_pass import HasRules, pass_of_rules

DEFAULT_PASSES = "canonicalize,fold-norms,fuse"
DTYPES = {"fp32": DType.F32, "fp16": DType.F16, "bf16": DType.BF16}


def resolve_passes(
    passes: str | Sequence[Pass | Rule] | None, known: Sequence[type[Pass]] = PASSES
) -> list[Pass]:
    """Returns pass objects of a pipeline string, a sequence, or the default.

    A rewrite rule in the sequence becomes a pass that applies it.
    """
    if passes is None:
        passes = DEFAULT_PASSES
    if isinstance(passes, str):
        return parse_pipeline(passes, known)
    return [
        pass_of_rules(item.name, RuleSet(item))() if isinstance(item, Rule) else item
        for item in passes
    ]


def check_rule_name(rule: str | None, passes: Sequence[Pass]) -> None:
    """Checks that a pass of the pipeline has the rule that `--explain` names.

    Raises:
        UsageError: When none has.
    """
    if rule is None:
        return
    known = {
        each.name
        for item in passes
        if isinstance(item, HasRules)
        for each in item.rules().compile()
    }
    if rule not in known:
        raise UsageError(f"no pass of the pipeline has a rule `{rule}`", hint=suggest(rule, known))


def with_dtype(
    passes: Sequence[Pass], module: Module, wanted: str | None, target: str
) -> list[Pass]:
    """Returns the pipeline with the pass that `--dtype` asks for, before the module is legalized.

    Raises:
        UsageError: For an unknown type, or when the pipeline casts already.
        UnsupportedError: For a wider type than the source's, or one that the target cannot run.
    """
    if wanted is None:
        return list(passes)
    if wanted not in DTYPES:
        raise UsageError(f"unknown dtype `{wanted}`", hint=suggest(wanted, DTYPES))
    if any(isinstance(item, Cast) for item in passes):
        raise UsageError("the pipeline has a pass `cast`, and --dtype is given", hint="give one")
    own = _own_dtype(module)
    if own is DTYPES[wanted]:
        return list(passes)
    if wanted == "fp32":
        raise UnsupportedError(
            f"`--dtype fp32`: the source's weights are {own or 'not floating point'}, and casting "
            "to a wider type is not built yet",
            hint="leave --dtype out",
        )
    if wanted == "bf16" and target == "ort-cpu":
        raise UnsupportedError(
            "`--dtype bf16`: ONNX Runtime's CPU provider has no bf16 kernels",
            hint="use --dtype fp16, or --target onnx or ort-cuda",
        )
    late = [getattr(item, "level", "canonical") != "canonical" for item in passes]
    place = late.index(True) if any(late) else len(passes)
    return [*passes[:place], Cast("fp16" if wanted == "fp16" else "bf16"), *passes[place:]]


def _own_dtype(module: Module) -> DType | None:
    """Returns the float type that most of the weights' bytes have."""
    sizes: dict[DType, int] = {}
    for name in module.weights:
        weight = module.weights[name]
        if weight.dtype.is_float:
            sizes[weight.dtype] = sizes.get(weight.dtype, 0) + weight.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def with_legalization(passes: Sequence[Pass], target: str, opset: int | None) -> list[Pass]:
    """Returns the pipeline with `legalize` at its end, where the target has several forms."""
    if target not in LEGALIZED or any(isinstance(item, Legalize) for item in passes):
        return list(passes)
    return [*passes, Legalize(target) if opset is None else Legalize(target, opset)]


def drop_stops(module: Module, passes: Sequence[Pass], target: str) -> None:
    """Removes ends of gradients from what the passes will meet, where none flow.

    The files of ONNX targets are for inference, and rewrites see what ends stand between; passes
    that train need them.

    Args:
        module: The source, which is changed.
        passes: The pipeline.
        target: Where the result will run.
    """
    if target in PROFILES and not any(getattr(item, "needs_teacher", False) for item in passes):
        without_stops(module)
