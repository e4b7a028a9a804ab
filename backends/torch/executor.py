"""Runs modules in PyTorch for passes: outputs, values inside, gradients by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.backends.torch.build import build, compile_source, to_torch
from regraft.backends.torch.calling import call_form
from regraft.backends.torch.generate import Generated, generate
from regraft.backends.torch.pickling import GENERATED
from regraft.backends.torch.results import named_outputs
from regraft.backends.torch.states import held_states, written_inputs
from regraft.backends.torch.tensors import array_from, tensor_from
from regraft.ir.call_form import CALL, OUTPUTS
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.ir.extract import with_outputs
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]
Samples = Sequence[Mapping[str, Array]]
Loss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(outputs by name, the sample) -> the scalar that is differentiated."""


class TorchRunner:
    """Runs samples through a module: arrays in, arrays out.

    Args:
        net: What `to_torch` or a written file gave.
        module: What it was made from, for names and element types.
        device: Where it runs.
    """

    def __init__(self, net: nn.Module, module: Module, *, device: str = "cpu") -> None:
        self.net = net.to(device)
        self.device = device
        graph = module.graph
        held = held_states(module)
        written = written_inputs(module, held)
        gone = {state.output for state in [*held.values(), *written.values()]}
        self._buffers = {str(value.name): state.output for value, state in held.items()}
        self._written = {str(value.name): state.output for value, state in written.items()}
        self._inputs = [str(value.name) for value in graph.inputs if value not in held]
        returned = tuple(name for name in graph.output_names if name not in gone)
        self._form = call_form(module, self._inputs, returned)
        pairs = zip(graph.output_names, graph.outputs, strict=True)
        self._types = {name: value.type for name, value in pairs}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs by name; states that the module holds are set and read like them.

        Raises:
            UnsupportedError: When PyTorch refuses the sample.
        """
        given = {name: _moved(inputs[name], self.device) for name in self._inputs}
        args, kwargs = self._form.arguments(given)
        try:
            with torch.no_grad():
                for name in self._buffers.keys() & inputs.keys():
                    self.net.get_buffer(name).copy_(_moved(inputs[name], self.device))
                results = self.net(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            message = f"PyTorch does not run the sample: {error}"
            raise UnsupportedError(message) from error
        found = named_outputs(self._form.result, results)
        found |= {output: given[name] for name, output in self._written.items()}
        for name, output in self._buffers.items():
            found[output] = self.net.get_buffer(name)
        return {name: _array(found[name], type_) for name, type_ in self._types.items()}


def load_file(path: Path) -> nn.Module:
    """Returns the model of a file that `save_torch` wrote, weights beside it."""
    net = compile_source(path.read_text(encoding="utf-8"), str(path))["load"]()
    if not isinstance(net, nn.Module):
        raise TypeError(f"`load` of `{path}` gives no module")
    return net


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
        runner = TorchRunner(to_torch(module), module, device=self.device)
        return [runner(sample) for sample in samples]

    def activations(
        self, module: Module, values: Sequence[Value], samples: Samples
    ) -> Iterator[dict[Value, Array]]:
        """Iterates over the samples; yields the content of each of `values`.

        Raises:
            UsageError: For a value that is not in the main graph.
        """
        outputs = {f"activation_{idx}": value for idx, value in enumerate(values)}
        inner = with_outputs(module, outputs)
        inner.meta.pop(OUTPUTS, None)
        inner.meta.pop(CALL, None)
        runner = TorchRunner(to_torch(inner), inner, device=self.device)
        for sample in samples:
            results = runner(sample)
            yield {value: results[name] for name, value in outputs.items()}


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
        net = build(generate(module, as_stored=True, is_flat=True)).to(self.device)
        generated: Generated = getattr(type(net), GENERATED)
        nest = generated.form.result
        wanted = self._wanted(module, net, weights)
        for sample in samples:
            tensors = {name: _moved(item, self.device) for name, item in sample.items()}
            results = net(*[tensors[name] for name in generated.inputs])
            loss = self.loss(named_outputs(nest, results), tensors)
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
