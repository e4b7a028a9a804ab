"""Shares that are drawn to one while weights are trained."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.backends.torch.training.nets import NamedNet
from regraft.passes.recovery.fading import rising_shares, share_at


class Fading:
    """Sets the rising shares of a net before every step; what a step has depends on it alone.

    Args:
        net: Whose module says which weights are shares.
        steps: Of the run.
    """

    def __init__(self, net: NamedNet, steps: int) -> None:
        names = set(rising_shares(net.module))
        self._steps = steps
        self._first: list[tuple[Tensor, float]] = [
            (parameter, float(parameter))
            for path, parameter in net.net.named_parameters()
            if net.plan.names.get(path, path) in names
        ]

    def before(self, step: int) -> None:
        """Sets them for a step, from 0; at the number of steps they are one."""
        with torch.no_grad():
            for parameter, first in self._first:
                parameter.fill_(share_at(first, step, self._steps))
