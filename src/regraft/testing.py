"""What tests of passes, rules and operators assert, for regraft's own and for those of plugins.

```python
from regraft.testing import check_op, check_pass, check_rule

check_pass(MyPass(), "graph(%x : f32[B, 4]) { … }")
check_rule(MyRule(), "graph(%x : f32[B, 4]) { … }")
check_op(MY_OPERATOR, [Sample((floats(3, 4),))])
```

All three raise `AssertionError` or the error that regraft itself would raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.api import run_passes
from regraft.ir.builder import Builder
from regraft.ir.compare import differences
from regraft.ir.evaluate import evaluate, evaluate_node
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import OpSpec
from regraft.ir.rewrite import RuleSet
from regraft.ir.rewrite.rule import CanCompile
from regraft.ir.text import parse_module
from regraft.ir.types import DType, TensorType, dtype_of
from regraft.ir.verify import check as check_ir
from regraft.passes.check.compare import compare_outputs
from regraft.passes.check.runners import EvalRunner, accepts
from regraft.passes.check.samples import Sample as InputSample
from regraft.passes.check.samples import generate_samples
from regraft.passes.manager import CheckMode, PassRecord
from regraft.passes.pipeline import format_pass, parse_pipeline
from regraft.passes.protocol import Lossy, Pass
from regraft.passes.rule_pass import pass_of_rules
from regraft.samples import bind_samples
from regraft.soundness import Sample, attack, bools, fixed, floats, ints, make_node

Inputs = Mapping[str, np.ndarray[Any, Any]]


def check_pass(
    item: Pass,
    module: Module | str,
    samples: Sequence[Inputs] = (),
    *,
    idempotent: bool = True,
) -> Module:
    """Runs a pass and asserts what every pass must keep.

    The IR verifies before and after, types inferred anew; `changed` says the truth; every rewrite
    of a rule and all outputs stay within the contract, on at least one sample whose outputs are
    neither NaN nor all zero; the options survive as pipeline text.

    Args:
        item: The pass.
        module: A module or its text; it is not changed.
        samples: Inputs; default: generated ones.
        idempotent: Whether a second run must find nothing to do.

    Returns:
        The module after the pass.

    Raises:
        AssertionError: When `changed` is untrue, options do not survive, a sample proves nothing,
            or a second run changes something.
        CheckError: When a rule or the outputs break the contract.
        VerifyError: When the IR is broken, before or after.
    """
    before = _module(module)
    check_ir(before, level="full")
    used = _samples(before, samples)
    _refuse_empty_samples(before, used)
    again = parse_pipeline(format_pass(item), (type(item),))
    assert again == [item], f"`{format_pass(item)}` reads back as {again}"
    after = before.clone()
    (record,) = _run(after, item, used)
    check_ir(after, level="full")
    _assert_truthful(record, before, after)
    if idempotent:
        once = after.clone()
        (record,) = _run(after, item, used)
        _assert_truthful(record, once, after)
        assert not record.changed, f"pass `{item.name}` changes its own result"
    return after


def check_rule(rule: CanCompile, module: Module | str, samples: Sequence[Inputs] = ()) -> Module:
    """Applies one rule until it does not match, and asserts that it is right.

    The rule matches at least once, ends, and every match is checked before and after on generated
    inputs, as well as the outputs of the module; see also `check_pass`.

    Args:
        rule: The rule.
        module: A module, or its text, that the rule matches; it is not changed.
        samples: Inputs; default: generated ones.

    Returns:
        The module after the rewrite.

    Raises:
        AssertionError: When the rule matches nowhere, or a match could not be checked.
        CheckError: When it changes what is computed.
    """
    name = rule.compile().name
    item = pass_of_rules(name, RuleSet(rule))()
    after = check_pass(item, module, samples)
    probe = _module(module).clone()
    (record,) = run_passes(probe, [item], check=CheckMode.MATCH)
    assert record.stats.get(name, 0), f"rule `{name}` matches nowhere in this module"
    assert not record.stats["match-unchecked"], f"matches of rule `{name}` could not be checked"
    return after


def check_op(spec: OpSpec, samples: Sequence[Sample]) -> None:
    """Asserts that the parts of an operator's spec agree with each other.

    Inferred types are those of what it computes; dropping positions of its axis rule's labels does
    what the rule says; its body computes what its `eval` computes.

    Args:
        spec: The operator.
        samples: Nodes of it: how to draw operands (`floats(3, 4)`, `ints`, `bools`, `fixed`), and
            attributes.

    Raises:
        AssertionError: Naming the sample and what disagrees.
    """
    assert samples, f"operator `{spec.name}`: no samples"
    for sample in samples:
        rng = np.random.default_rng(0)
        operands = [
            None if draw is None else draw(rng, "mixed", np.dtype(np.float32))
            for draw in sample.operands
        ]
        node = make_node(spec, operands, sample.attrs, sample.num_outputs)
        results = evaluate_node(node, operands, {})
        for value, result in zip(node.outputs, results, strict=False):
            _assert_typed(value, result)
        if spec.body is not None:
            _assert_body_agrees(node, operands, results)
        if spec.axes is not None:
            report = attack(spec, sample)
            assert not report.broken, "\n".join(report.broken)
            assert report.informative, f"operator `{spec.name}`: the results are all alike"


def _module(module: Module | str) -> Module:
    return parse_module(module) if isinstance(module, str) else module


def _samples(module: Module, samples: Sequence[Inputs]) -> list[InputSample]:
    if samples:
        return bind_samples(module, samples)
    return generate_samples(module, accepts(EvalRunner(module.clone())))


def _refuse_empty_samples(module: Module, samples: Sequence[InputSample]) -> None:
    for sample in samples:
        outputs = evaluate(module, sample.inputs)
        if any(diff.counts for diff in compare_outputs(outputs, outputs)):
            return
    raise AssertionError("all outputs are NaN or zero on every sample: they would prove nothing")


def _run(module: Module, item: Pass, samples: Sequence[InputSample]) -> list[PassRecord]:
    if isinstance(item.contract, Lossy):
        return run_passes(module, [item], check=CheckMode.OFF)
    inputs = [sample.inputs for sample in samples]
    return run_passes(module, [item], samples=inputs, check=CheckMode.EACH)


def _assert_truthful(record: PassRecord, before: Module, after: Module) -> None:
    found = differences(before, after)
    if record.changed:
        assert found, f"pass `{record.name}` says that it changed the module; it did not"
    else:
        assert not found, f"pass `{record.name}` says that it changed nothing: {found[0]}"


def _assert_typed(value: Value, result: Any) -> None:
    type_ = value.type
    if not isinstance(type_, TensorType) or not isinstance(result, np.ndarray):
        return
    where = f"{value!r}, computed {dtype_of(result)}{list(result.shape)}"
    assert type_.dtype in (None, dtype_of(result)), where
    if type_.shape is not None:
        assert len(type_.shape) == result.ndim, where
        for dim, size in zip(type_.shape, result.shape, strict=True):
            assert not isinstance(dim, int) or dim == size, where


def _assert_body_agrees(node: Node, operands: Sequence[Any], results: Sequence[Any]) -> None:
    graph = node.graph
    if graph is None or node.op.body is None:
        raise AssertionError("the node has no graph or its operator no body")
    made = node.op.body(node, Builder(graph))
    values = (made,) if isinstance(made, Value) else tuple(made)
    for i, value in enumerate(values):
        graph.add_output(f"result {i}", value)
    inputs = {
        str(value.name): array
        for value, array in zip(node.inputs, operands, strict=False)
        if value is not None
    }
    computed = evaluate(Module(graph), inputs)
    expected = dict(zip(graph.output_names, results, strict=False))
    for diff in compare_outputs(expected, computed, rtol=_body_rtol(node)):
        assert diff.ok, f"operator `{node.op.name}`: its body disagrees, {diff.reason}"


def _body_rtol(node: Node) -> float | None:
    # a body rounds at each of its nodes; a handful of them, each half a step of the element type
    return {DType.F16: 2.0**-8, DType.BF16: 2.0**-5}.get(node.output.dtype or DType.F32)


__all__ = [
    "Sample",
    "attack",
    "bools",
    "check_op",
    "check_pass",
    "check_rule",
    "fixed",
    "floats",
    "ints",
]
