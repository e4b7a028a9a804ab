"""What a pipeline with lossy passes still promises exactly: its parts before and after them.

The check of source against result measures such a pipeline and judges nothing. So what comes before
the first lossy pass is judged against the source, and what comes after the last one, emission
included, against the module that it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.checking import Checker
from regraft.ir.errors import UnsupportedError
from regraft.ir.module import Module
from regraft.ir.ops import quant, quant_linalg
from regraft.passes.check.module_check import CheckReport, combined_contract
from regraft.passes.check.runners import EvalRunner, Runner
from regraft.passes.pipeline import format_pipeline
from regraft.passes.protocol import Lossy, Pass
from regraft.plugins import Extensions
from regraft.sources import Source


class LossyParts:
    """Judges the exact parts of a pipeline with lossy passes; a `Watcher` of the pass manager.

    Args:
        checker: Compares with the source.
        passes: The pipeline.
        extensions: Operators and emitters, those of plugins among them.
        rtol: Overrides the relative tolerance.
        atol: Adds an absolute tolerance.
    """

    def __init__(
        self,
        checker: Checker,
        passes: Sequence[Pass],
        extensions: Extensions,
        *,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        lossy = [i for i, item in enumerate(passes) if isinstance(item.contract, Lossy)]
        self._first, self._last = (lossy[0], lossy[-1]) if lossy else (-1, -1)
        self._checker = checker
        self._passes = passes
        self._extensions = extensions
        self._rtol, self._atol = rtol, atol
        self._left: Module | None = None
        self.parts: dict[str, CheckReport] = {}

    def before(self, idx: int, module: Module) -> None:
        """Judges what the passes before the first lossy one made.

        Of a source that rounds to few steps nothing is judged: see `after`.

        Raises:
            CheckError: When they changed what the module computes.
        """
        if idx != self._first or idx == 0 or not self._can_judge or _rounds(module):
            return
        contract = combined_contract(item.contract for item in self._passes[:idx])
        report = self._checker.compare_with(self._runner(module), module, contract)
        self._keep("before", self._passes[:idx], report)

    def after(self, idx: int, module: Module) -> None:
        """Keeps what the last lossy pass left.

        Values that are rounded to few steps jump with any change of the order of sums: there is
        no tolerance that tells such a jump from an error, and nothing is kept.
        """
        if idx == self._last and self._can_judge and not _rounds(module):
            self._left = module.clone()

    def judge(self, module: Module, written: Path) -> None:
        """Judges what the passes after the last lossy one, and the emission, made.

        Args:
            module: What was written.
            written: The model's file.

        Raises:
            CheckError: When they changed what the module computes.
        """
        left, self._left = self._left, None
        if left is None:
            return
        rest = self._passes[self._last + 1 :]
        source = Source(
            left, "the module that the last lossy pass left", None, None,
            lambda optimize: self._runner(left, optimize=optimize), None, self._extensions,
        )  # fmt: skip
        contract = combined_contract(item.contract for item in rest)
        checker = Checker(source, rtol=self._rtol, atol=self._atol, contract=contract)
        checker.samples = self._checker.samples
        self._keep("after", rest, checker.compare(module, written, contract))

    @property
    def _can_judge(self) -> bool:
        return self._first >= 0 and self._checker.can_check and not self._checker.streams

    def _runner(self, module: Module, *, optimize: bool = True) -> Runner:
        try:
            proto = to_proto(module, families=self._extensions.onnx_emitters)
            return OrtRunner(proto, optimize=optimize)
        except UnsupportedError:
            return EvalRunner(module)

    def _keep(self, where: str, passes: Sequence[Pass], report: CheckReport) -> None:
        self.parts[where] = report
        if not report.ok:
            what = f"`{format_pipeline(passes)}`" if passes else "the emission"
            report.raise_if_failed(f"{what}, {where} what is lossy, is not exact: ")


_ROUNDING = {op.name for op in (*quant.OPS, *quant_linalg.OPS)} | {"round"}


def _rounds(module: Module) -> bool:
    return any(node.op.name in _ROUNDING for node in module.graph.walk())
