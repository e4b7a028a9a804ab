"""Runs any PyTorch model on arrays by name, for comparisons and quality meters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regraft.backends.torch.tensors import tensor_from
from regraft.ir.errors import UnsupportedError


class NetRunner:
    """Calls a model with a sample's arrays as keyword arguments: arrays in, arrays out.

    Outputs are named as the model names them (a dict, an output of `transformers`); those of a
    tuple by their position, `output_0`; a single tensor is `output`.

    Args:
        net: The model; it is set to evaluation mode.
        names: Names of the outputs, where the model gives none.
        device: Where it runs.
    """

    def __init__(
        self, net: nn.Module, names: Sequence[str] | None = None, *, device: str = "cpu"
    ) -> None:
        self.net = net.to(device).eval()
        self.names = names
        self.device = device

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the float and integer outputs by name; half precision becomes f32.

        Raises:
            UnsupportedError: When PyTorch refuses the sample.
        """
        tensors = {name: tensor_from(array).to(self.device) for name, array in inputs.items()}
        try:
            with torch.no_grad():
                results = self.net(**tensors)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            message = f"PyTorch does not run the sample: {error}"
            raise UnsupportedError(message) from error
        return {
            name: _array(each) for name, each in self._named(results) if isinstance(each, Tensor)
        }

    def _named(self, results: Any) -> list[tuple[str, Any]]:
        if isinstance(results, Mapping):
            return list(results.items())
        if isinstance(results, Tensor):
            return [(self.names[0] if self.names else "output", results)]
        if self.names is not None:
            return list(zip(self.names, results, strict=False))
        return [(f"output_{idx}", each) for idx, each in enumerate(results)]


def _array(result: Tensor) -> Any:
    wide = result.float() if result.dtype in (torch.float16, torch.bfloat16) else result
    return wide.detach().cpu().numpy()
