"""Runs modules in PyTorch for passes: outputs, values inside, gradients by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.backends.torch.build import GENERATED, build, to_torch
from regraft.backends.torch.generate import OUTPUTS, Generated, generate
from regraft.backends.torch.tensors import array_from, tensor_from
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module, clone_graph
from regraft.ir.types import DType, TensorType
from regraft.passes.protocol import Samples

Array = np.ndarray[Any, Any]
Loss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(outputs by name, the sample) -> the scalar that is differentiated."""


class TorchRunner:
    """Runs samples through a generated module: arrays in, arrays out.

    Args:
        module: The module.
        device: Where it runs.
    """

    def __init__(self, module: Module, *, device: str = "cpu") -> None:
        plain = module.clone()
        plain.meta.pop(OUTPUTS, None)  # outputs are wanted by name
        self._types = [value.type for value in plain.graph.outputs]
        self.net = to_torch(plain).to(device)
        self.device = device

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs by name.

        Raises:
            UnsupportedError: When PyTorch refuses the sample.
        """
        generated: Generated = getattr(type(self.net), GENERATED)
        arguments = [_moved(inputs[name], self.device) for name in generated.inputs.values()]
        try:
            with torch.no_grad():
                results = self.net(*arguments)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            message = f"PyTorch does not run the sample: {error}"
            raise UnsupportedError(message) from error
        if len(generated.outputs) == 1:
            results = (results,)
        return {
            name: _array(result, type_)
            for name, result, type_ in zip(generated.outputs, results, self._types, strict=True)
        }


def _moved(item: Any, device: str) -> Any:
    if isinstance(item, list):
        return [_moved(each, device) for each in item]
    return None if item is None else tensor_from(np.asarray(item)).to(device)


def _array(result: Any, type_: Any) -> Any:
    if isinstance(result, list | tuple):
        element = getattr(type_, "element", None)
        return [_array(each, element) for each in result]
    if not isinstance(result, Tensor):
        return result
    known = isinstance(type_, TensorType) and type_.dtype is not None
    return array_from(result, type_.dtype) if known else result.detach().cpu().numpy()


@dataclass(frozen=True, slots=True)
class TorchExecutor:
    """Runs modules (`Executor`) and gives the values inside them (`ActivationSource`).

    Args:
        device: Where they run.
    """

    device: str = "cpu"

    def run(
        self, module: Module, samples: Samples, *, optimize: bool = True
    ) -> list[dict[str, Array]]:
        """Returns the outputs by name for every sample; eager PyTorch has nothing to optimize."""
        runner = TorchRunner(module, device=self.device)
        return [runner(sample) for sample in samples]

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, Array]]:
        """Iterates over the samples; yields the content of each of `values`.

        Raises:
            UsageError: For a value that is not in the main graph.
        """
        for value in values:
            if value.owner is not module.graph:
                raise UsageError(
                    f"`{value.name}` is no value of the main graph", hint="values in bodies are not"
                )
        copies: dict[Value, Value] = {}
        inner = module.clone()
        inner.graph = clone_graph(module.graph, inner.graph.scope, copies)
        names = [f"activation_{idx}" for idx in range(len(values))]
        inner.graph.set_outputs(
            (name, copies[value]) for name, value in zip(names, values, strict=True)
        )
        runner = TorchRunner(inner, device=self.device)
        for sample in samples:
            results = runner(sample)
            yield {value: results[name] for name, value in zip(names, values, strict=True)}


def mean_square(outputs: Mapping[str, Tensor], sample: Mapping[str, Tensor]) -> Tensor:
    """Returns half the sum over float outputs of their mean squares: a loss without labels."""
    terms = [x.float().square().mean() / 2 for x in outputs.values() if x.is_floating_point()]
    return torch.stack(terms).sum()


@dataclass(frozen=True, slots=True)
class TorchGradients:
    """Gives gradients by weight (`GradientSource`).

    Args:
        loss: What is differentiated; default: `mean_square`, which needs no labels.
        device: Where the module runs.
    """

    loss: Loss = mean_square
    device: str = "cpu"

    def gradients(
        self, module: Module, samples: Samples, weights: Sequence[str] | None = None
    ) -> Iterator[dict[str, Array]]:
        """Iterates over the samples; yields the loss's gradient for each weight.

        Raises:
            UsageError: For a name that is no float weight of the module.
        """
        plain = module.clone()
        plain.meta.pop(OUTPUTS, None)
        net = build(generate(plain, as_stored=True)).to(self.device)
        wanted = self._wanted(module, net, weights)
        generated: Generated = getattr(type(net), GENERATED)
        for sample in samples:
            tensors = {name: _moved(item, self.device) for name, item in sample.items()}
            results = net(*[tensors[name] for name in generated.inputs.values()])
            outputs = (results,) if len(generated.outputs) == 1 else results
            loss = self.loss(dict(zip(generated.outputs, outputs, strict=True)), tensors)
            found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            yield {
                name: _gradient(grad, parameter)
                for (name, parameter), grad in zip(wanted.items(), found, strict=True)
            }

    @staticmethod
    def _wanted(
        module: Module, net: nn.Module, weights: Sequence[str] | None
    ) -> dict[str, nn.Parameter]:
        generated: Generated = getattr(type(net), GENERATED)
        paths = {generated.plan.names.get(path, path): path for path in generated.plan.slots}
        parameters = dict(net.named_parameters())
        if weights is None:
            return {name: parameters[path] for name, path in paths.items() if path in parameters}
        found = {}
        for name in weights:
            path = paths.get(module.weights.resolve(name))
            if path not in parameters:
                raise UsageError(
                    f"`{name}` is no float parameter that the module reads",
                    hint="names are those of the module's own weights, as it is now",
                )
            found[name] = parameters[path]
        return found


def _gradient(grad: Tensor | None, parameter: nn.Parameter) -> Array:
    dtype = DType.F64 if parameter.dtype == torch.float64 else DType.F32
    if grad is None:
        return np.zeros(tuple(parameter.shape), dtype.numpy)
    return array_from(grad, dtype)
