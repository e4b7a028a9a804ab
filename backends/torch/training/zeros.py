"""Zeros that stay: gradients of sparse parameters are cut where the parameter is zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from regraft.backends.torch.training.nets import NamedNet
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.passes.recovery.task import Adapter, Dsee, Lora
from regraft.passes.recovery.zeros import release_zeros, sparse_tensors


class HeldZeros:
    """The zeros of the parameters that a pass made sparse.

    Args:
        net: The net; its module says which tensors are sparse.
        paths: Parameters that are trained.
    """

    def __init__(self, net: NamedNet, paths: Iterable[str]) -> None:
        sparse = set(sparse_tensors(net.module))
        names = {path: net.plan.names.get(path, path) for path in paths}
        self._names = names
        self._module = net.module
        self._net: nn.Module = net.net
        self._masks = {
            path: self._net.get_parameter(path).detach() != 0
            for path, name in names.items()
            if name in sparse
        }

    def hold(self) -> None:
        """Cuts gradients; AdamW never moves what never had one."""
        for path, mask in self._masks.items():
            self._net.get_parameter(path).register_hook(_cut(mask))

    def check_adapter(self, adapter: Adapter) -> None:
        """Checks that an adapter leaves zeros, or is meant to fill them.

        Raises:
            UsageError: When it adds to them.
        """
        if isinstance(adapter, Lora) and self._masks:
            raise UsageError(
                f"`{next(iter(self._masks))}` is sparse, and `lora` adds to its zeros",
                hint="use adapter=spp, which keeps them, dsee, which is for them, or no adapter",
            )
        if isinstance(adapter, Dsee):  # what it adds is dense once it is folded
            release_zeros(self._module, [self._names[path] for path in self._masks])
            self._masks = {}

    def check(self) -> None:
        """Checks that zeros are zero still.

        Raises:
            UnsupportedError: When training changed them.
        """
        for path, mask in self._masks.items():
            parameter = self._net.get_parameter(path).detach()
            if torch.count_nonzero(parameter[~mask.to(parameter.device)]):
                raise UnsupportedError(
                    f"training filled zeros of `{path}`",
                    hint="weights that are held in shards cannot be kept sparse: use adapter=spp",
                )


def _cut(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask.to(gradient.device)
