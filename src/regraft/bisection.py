"""`bisect`: the first pass and match that change outputs, and a small reproducer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.emitter import Emit
from regraft.backends.onnx.legalize import legalizers
from regraft.backends.onnx.ops import FAMILIES
from regraft.backends.onnx.runtime import OrtRunner
from regraft.comparison import first_divergence
from regraft.emission import check_known
from regraft.ir.errors import RegraftError, UnsupportedError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.rewrite.explain import label
from regraft.ir.verify import check as check_ir
from regraft.passes.check.module_check import CheckReport, check_module, combined_contract
from regraft.passes.check.reduce import Part, reduce_failure
from regraft.passes.check.rounding import RetypedRunner, plain_for
from regraft.passes.check.runners import PROBE_ERRORS, EvalRunner, Runner, accepts, unevaluable
from regraft.passes.check.samples import Sample, generate_samples
from regraft.passes.check.second_look import second_look
from regraft.passes.manager import count_nodes
from regraft.passes.pipeline import format_pass
from regraft.passes.protocol import Context, Contract, Pass, Rounded
from regraft.passes.reproducer import write_reproducer
from regraft.pipelines import drop_stops
from regraft.samples import bind_samples, check_dims
from regraft.tables import user_tables


@dataclass(frozen=True, slots=True)
class Finding:
    """What `bisect` found.

    Args:
        pass_text: The first pass that breaks, as pipeline text; None when outputs stay in
            tolerance after every pass.
        pass_idx: Its position in the pipeline, from 0.
        reason: What is wrong after it: the output and its difference, or the error it raised.
        rule: The first rule application after which outputs are wrong, None when the pass applies
            no rules.
        match: The node at which it was applied.
        match_idx: Which of the pass's rewrites it was, from 1.
        first_value: The first value that differs, where it could be found.
        reproducer: Folder that replays the failure.
        num_nodes: Compute nodes of the reproducer.
        num_runs: How often the pass ran for the search.
    """

    pass_text: str | None
    pass_idx: int | None = None
    reason: str = ""
    rule: str | None = None
    match: str | None = None
    match_idx: int | None = None
    first_value: str | None = None
    reproducer: Path | None = None
    num_nodes: int | None = None
    num_runs: int = 0


class _StopRewriting(Exception):  # noqa: N818  # a signal, not an error
    """Ends a pass before one of its rewrites."""


@dataclass(slots=True)
class _Stopper:
    """Lets a number of rewrites happen, then ends the pass.

    Attributes:
        limit: Rewrites to let happen, None for all.
        rules: Rule and place of every rewrite seen.
        node: The node at which the pass was ended.
    """

    limit: int | None
    rules: list[tuple[str, str]] = field(default_factory=list)
    node: Node | None = None

    def replaced(
        self, rule: str, node: Node, values: Sequence[Value], made: Sequence[Node]
    ) -> None:
        """Counts a rewrite before it happens."""
        self.rules.append((rule, label(node)))
        if self.limit is not None and len(self.rules) > self.limit:
            self.node = node
            raise _StopRewriting


class Bisection:
    """One search.

    Args:
        module: The source; it is not changed.
        passes: The pipeline.
        samples: Samples that the source runs.
        ctx: What passes may use.
        folder: Where the reproducer goes; default: a temporary folder.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
        emitters: Emitters for what only a runtime can run, those of plugins among them.
        say: Called with what is being done.
    """

    def __init__(
        self,
        module: Module,
        passes: Sequence[Pass],
        samples: Sequence[Sample],
        ctx: Context,
        *,
        folder: Path | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        emitters: Sequence[tuple[Emit, ...]] = FAMILIES,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.source = module
        self.passes = passes
        self.samples = samples
        self.ctx = ctx
        self.folder = folder
        self.rtol = rtol
        self.atol = atol
        self.say = say
        self.num_runs = 0
        self.evaluates = not unevaluable(module)
        self.emitters = emitters

    def run(self) -> Finding:
        """Runs the passes one by one, then searches within the first that breaks."""
        module = self.source.clone()
        for idx, item in enumerate(self.passes):
            self.say(f"after {format_pass(item)}")
            before = module.clone()
            contract = combined_contract(each.contract for each in self.passes[: idx + 1])
            reason = self._broken(module, item, contract)
            if reason is not None:
                return self._within(before, module, item, idx, contract, reason)
        return Finding(None, num_runs=self.num_runs)

    def _broken(self, module: Module, item: Pass, contract: Contract) -> str | None:
        """Applies one pass; returns what is wrong then, None when nothing is."""
        self.num_runs += 1
        try:
            item.run(module, self.ctx)
            check_ir(module)
        except RegraftError as error:
            return f"{type(error).__name__}: {error.message}"
        return self._difference(self.source, module, self.samples, contract)

    def _difference(
        self, a: Module, b: Module, samples: Sequence[Sample], contract: Contract
    ) -> str | None:
        try:
            report = self._compare(a, b, samples, contract)
        except UnsupportedError as error:
            return f"the result does not run: {error.message}"
        except PROBE_ERRORS as error:
            return f"the result does not run: {type(error).__name__}: {error}"
        if report.ok:
            return None
        worst = max(report.outputs, key=lambda diff: (not diff.ok, diff.max_rel))
        return f"output `{worst.name}` {worst.reason}"

    def _compare(
        self, a: Module, b: Module, samples: Sequence[Sample], contract: Contract
    ) -> CheckReport:
        result = self._runner(b)
        if isinstance(contract, Rounded):
            result = RetypedRunner(result, a, b)
        return check_module(
            self._runner(a), plain_for(contract, a, None) if self.evaluates else None, result,
            samples, contract=contract, rtol=self.rtol, atol=self.atol,
            look=None if isinstance(contract, Rounded) else second_look(a, b),
        )  # fmt: skip

    def _runner(self, module: Module) -> Runner:
        return EvalRunner(module) if self.evaluates else _in_runtime(module, self.emitters)

    # -- within a pass --------------------------------------------------------------------------

    def _within(
        self,
        before: Module,
        after: Module,
        item: Pass,
        idx: int,
        contract: Contract,
        reason: str,
    ) -> Finding:
        self.say(f"within {format_pass(item)}")
        rules, total = self._stopped(before, item, None)
        finding = Finding(format_pass(item), idx, reason)
        state, seeds = before, []
        if rules:
            count = self._first_bad(before, item, contract, total)
            if count is not None:
                rule, place = rules[count - 1]
                finding = replace(finding, rule=rule, match=place, match_idx=count)
                state, node = self._state(before, item, count - 1)
                seeds = [node] if node is not None else []
        sample = self._failing_sample(after, contract)
        if self.evaluates:
            divergence = self._diverges(before, after, sample)
            finding = replace(finding, first_value=divergence)
            seeds = seeds or _producers(state, divergence)
        self.say("reducing")
        return self._reduced(finding, state, before, item, seeds, sample)

    def _stopped(
        self, before: Module, item: Pass, limit: int | None
    ) -> tuple[list[tuple[str, str]], int]:
        _, stopper = self._run_until(before, item, limit)
        return stopper.rules, len(stopper.rules)

    def _run_until(self, before: Module, item: Pass, limit: int | None) -> tuple[Module, _Stopper]:
        self.num_runs += 1
        module, stopper = before.clone(), _Stopper(limit)
        try:
            item.run(module, dataclasses.replace(self.ctx, observer=stopper))
        except _StopRewriting:
            if stopper.node is not None and stopper.node.graph is not None:
                stopper.node.infer()  # a change in place is typed after it was counted
        except RegraftError:
            pass  # the finding says so already; what happened until then is looked at
        return module, stopper

    def _first_bad(self, before: Module, item: Pass, contract: Contract, total: int) -> int | None:
        """Returns the number of rewrites after which outputs are wrong first, None when never."""

        def bad(count: int) -> bool:
            module, _ = self._run_until(before, item, count if count < total else None)
            return self._difference(self.source, module, self.samples, contract) is not None

        low, high = 0, total  # fine after `low`, wrong after `high`
        if not bad(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if bad(middle) else (middle, high)
        return high

    def _state(self, before: Module, item: Pass, count: int) -> tuple[Module, Node | None]:
        module, stopper = self._run_until(before, item, count)
        node = stopper.node
        while node is not None and node.graph is not module.graph:
            node = None if node.graph is None else node.graph.parent  # a body: its control flow
        return module, node

    def _failing_sample(self, after: Module, contract: Contract) -> Sample:
        for sample in self.samples:
            if self._difference(self.source, after, [sample], contract) is not None:
                return sample
        return self.samples[0]

    def _diverges(self, before: Module, after: Module, sample: Sample) -> str | None:
        try:
            found = first_divergence(before, after, sample)
        except PROBE_ERRORS:
            return None
        return None if found is None else str(found["value"])

    # -- the reproducer -------------------------------------------------------------------------

    def _reduced(
        self,
        finding: Finding,
        state: Module,
        before: Module,
        item: Pass,
        seeds: Sequence[Node],
        sample: Sample,
    ) -> Finding:
        def fails(part: Module, samples: Sequence[Sample]) -> bool:
            self.num_runs += 1
            source = part.clone()
            ctx = dataclasses.replace(self.ctx, samples=[s.inputs for s in samples], observer=None)
            try:
                item.run(part, ctx)
                check_ir(part)
            except PROBE_ERRORS as error:
                return finding.reason.startswith(type(error).__name__)
            return self._difference(source, part, samples, item.contract) is not None

        part: Part | None = None
        if self.evaluates:
            part = reduce_failure(state, seeds, sample.inputs, fails)
            if part is None and state is not before:
                again = _producers(before, finding.first_value)
                part = reduce_failure(before, again, sample.inputs, fails)
        module, samples = (before, [sample]) if part is None else (part.module, part.samples)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        folder = write_reproducer(module, list(samples), format_pass(item), self.folder)
        return replace(
            finding, reproducer=folder, num_nodes=count_nodes(module.graph), num_runs=self.num_runs
        )


def _in_runtime(module: Module, emitters: Sequence[tuple[Emit, ...]]) -> Runner:
    return OrtRunner(to_proto(module, families=emitters))


def replace(finding: Finding, **changes: Any) -> Finding:
    """Returns the finding with other fields."""
    return dataclasses.replace(finding, **changes)


def _producers(module: Module, name: str | None) -> list[Node]:
    """Returns the node that makes the value `name`; the last node when the name is not known."""
    for node in module.graph:
        if name is not None and any(value.name == name for value in node.outputs):
            return [node]
    ends = [value.producer for value in module.graph.outputs if value.producer is not None]
    return ends[:1]


def bisect(
    module: Module,
    passes: Sequence[Pass],
    *,
    target: str = "ort-cpu",
    samples: Sequence[Mapping[str, Any]] = (),
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    folder: Path | None = None,
    emitters: Sequence[tuple[Emit, ...]] = FAMILIES,
    say: Callable[[str], None] = lambda text: None,
) -> Finding:
    """Returns the first pass and match after which outputs leave tolerance.

    Args:
        module: The source; it is not changed.
        passes: The pipeline.
        target: Where the result will run: passes choose for it, and meet what a conversion to it
            shows them.
        samples: The user's samples; default: generated ones.
        dims: Sizes of generated samples.
        seed: Seed of everything random.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
        folder: Where the reproducer goes; default: a temporary folder.
        emitters: Emitters for what only a runtime can run, those of plugins among them.
        say: Called with what is being done.

    Raises:
        UnsupportedError: When the source runs nowhere or no sample can be made.
        UsageError: For an unknown target.
    """
    check_known(target)
    module = module.clone()
    drop_stops(module, passes, target)
    used = bind_samples(module, samples)
    if not used:
        check_dims(module, dims or {})
        runner = _in_runtime(module, emitters) if unevaluable(module) else EvalRunner(module)
        used = generate_samples(module, accepts(runner), dims=dims, seed=seed)
    ctx = Context(
        seed=seed, target=target, samples=samples, probes=[sample.inputs for sample in used],
        dims=dims or {}, legalizers=legalizers(user_tables(), emitters),
    )  # fmt: skip
    return Bisection(
        module, passes, used, ctx, folder=folder, rtol=rtol, atol=atol, emitters=emitters, say=say
    ).run()


def as_json(finding: Finding) -> Mapping[str, Any]:
    """Returns the document of `regraft bisect --json`."""
    return {
        "found": finding.pass_text is not None,
        "pass": finding.pass_text,
        "pass_index": finding.pass_idx,
        "reason": finding.reason,
        "rule": finding.rule,
        "match": finding.match,
        "match_index": finding.match_idx,
        "first_value": finding.first_value,
        "reproducer": None if finding.reproducer is None else str(finding.reproducer),
        "nodes": finding.num_nodes,
        "runs": finding.num_runs,
    }
