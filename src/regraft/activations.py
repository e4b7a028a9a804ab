"""Values inside a module: of ONNX Runtime, of PyTorch where it has no kernels, else evaluated."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.errors import UnsupportedError
from regraft.ir.extract import with_outputs
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.check.runners import EvalRunner
from regraft.passes.protocol import ActivationSource, Samples

Array = np.ndarray[Any, Any]


class EvaluatedActivations:
    """Gives the values that the numpy evaluator computes (`ActivationSource`)."""

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, Array]]:
        """Iterates over the samples; yields the content of each of `values`.

        Raises:
            UnsupportedError: For an operator without a numpy meaning.
        """
        outputs = {f"activation_{idx}": value for idx, value in enumerate(values)}
        runner = EvalRunner(with_outputs(module, outputs))
        for sample in samples:
            results = runner(sample)
            yield {value: results[name] for name, value in outputs.items()}


class Activations:
    """Asks the first runtime that takes the module (`ActivationSource`).

    ONNX Runtime computes f16 and bf16 in part only, and operators of PyTorch not at all. The
    choice is made by the first sample: what is refused later is refused.

    Args:
        sources: Makers of sources in order; default: ONNX Runtime, PyTorch where it is installed,
            the numpy evaluator.
    """

    def __init__(self, sources: Sequence[Callable[[], ActivationSource]] | None = None) -> None:
        if sources is None:
            sources = [OrtActivations, EvaluatedActivations]
            if importlib.util.find_spec("torch") is not None:
                sources.insert(1, _of_torch)
        self._sources = tuple(sources)

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, Array]]:
        """Iterates over the samples; yields the content of each of `values`, in its own dtype.

        Raises:
            UsageError: For a value that is not in the main graph.
            UnsupportedError: As the first source says it, when none takes the module.
        """
        if not samples:
            return
        refusals: list[UnsupportedError] = []
        for make in self._sources:
            found = make().activations(module, values, samples)
            try:
                first = next(found)
            except UnsupportedError as error:
                refusals.append(error)
                continue
            yield first
            yield from found
            return
        for other in refusals[1:]:
            refusals[0].add_note(f"nor does another runtime: {other.message}")
        raise refusals[0]


def _of_torch() -> ActivationSource:
    # only now: PyTorch takes seconds to import, and most modules run without it
    from regraft.backends.torch.executor import TorchExecutor

    return TorchExecutor()
