"""Runs the original PyTorch module on samples of its captured form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils import _pytree as pytree

from regraft.frontends.torch.export import evaluation_mode
from regraft.frontends.torch.tensors import array_from_tensor
from regraft.ir.errors import UnsupportedError

_BITS: dict[np.dtype[Any], tuple[type[np.generic], torch.dtype]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
}


def tensor_from_array(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Returns a tensor with a copy of the data: modules may write to their inputs."""
    bits = _BITS.get(array.dtype)
    if bits is None:
        return torch.from_numpy(np.array(array, order="C"))
    return torch.from_numpy(np.array(array, order="C").view(bits[0])).view(bits[1])


class EagerRunner:
    """The original module as a function from arrays by input name to arrays by output name.

    Args:
        module: The module.
        args: The example positional arguments: leaves that are no graph inputs keep their value.
        kwargs: The example keyword arguments.
        inputs: Name of the graph input by leaf of the arguments.
        outputs: Name of the graph output by leaf of the result.
        fast: Whether oneDNN may compute; its kernels round otherwise than PyTorch's own.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        inputs: Mapping[int, str],
        outputs: Mapping[int, str],
        *,
        fast: bool = True,
    ) -> None:
        self.module = module
        self.leaves, self.spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self.inputs = inputs
        self.outputs = outputs
        self.fast = fast

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs of one sample.

        Raises:
            UnsupportedError: When the module does not run on it.
        """
        leaves = list(self.leaves)
        for i, name in self.inputs.items():
            leaves[i] = tensor_from_array(inputs[name])
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        try:
            with torch.no_grad(), _one_dnn(enabled=self.fast):
                if isinstance(self.module, torch.nn.Module):
                    with evaluation_mode(self.module):
                        result = self.module(*args, **kwargs)
                else:
                    result = self.module(*args, **kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            first = str(error).strip().splitlines()
            raise UnsupportedError(
                f"the module does not run the sample: {first[0] if first else error!r}",
                hint="give samples that it takes with --inputs",
            ) from error
        found = pytree.tree_leaves(result)
        return {name: _array(found[i]) for i, name in self.outputs.items()}


@contextlib.contextmanager
def _one_dnn(*, enabled: bool) -> Iterator[None]:
    """Lets oneDNN compute or not; `torch.backends.mkldnn.flags` warns of settings of GPUs."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(enabled)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _array(leaf: Any) -> np.ndarray[Any, Any]:
    return array_from_tensor(leaf) if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
