"""Latency as the target of prune: the search, what it records, and what it says."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from regraft.benching import OrtLatency
from regraft.ir.errors import TargetError, UsageError
from regraft.ir.module import Module
from regraft.passes.analysis.coupling import Coupling
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.passes.pruning.cost import cost_model
from tests.passes.pruning.test_prune import run, stack


@dataclass
class Clock:
    """A latency of a fixed part and one that follows the FLOPs."""

    fixed: float = 0.2
    trials: list[float] = field(default_factory=list)

    def ratio(self, before: Module, after: Module) -> float:
        """Returns what a machine of that law would measure."""
        flops = [_flops(module) for module in (before, after)]
        self.trials.append(self.fixed + (1 - self.fixed) * flops[1] / flops[0])
        return self.trials[-1]


def _flops(module: Module) -> float:
    coupling = Coupling(module)
    model = cost_model(coupling, "flops", {"B": 1, "S": 128})
    return model.total(np.array([group.size for group in coupling.groups]))


@pytest.mark.parametrize("wanted", [0.4, 0.5, 0.8])
def test_a_latency_is_searched_for_and_met(wanted: float) -> None:
    module, clock = stack(), Clock()
    result = Prune(f"latency:{wanted}").run(module, Context(latency=clock))
    (target,) = result.targets
    assert target.met
    assert target.achieved == pytest.approx(wanted, rel=0.05)
    assert result.stats["flops-after"] < result.stats["flops-before"]
    assert len(clock.trials) <= 8
    assert run(module).shape == (2, 3, 4)


def test_a_latency_out_of_reach_names_the_nearest() -> None:
    module = stack()
    before = str(module)
    with pytest.raises(TargetError) as caught:
        Prune("latency:0.5").run(module, Context(latency=Clock(fixed=0.9)))
    assert caught.value.exit_code == 4
    assert "is nearest" in caught.value.message
    assert str(module) == before


def test_a_recorded_plan_is_taken_again_without_a_clock() -> None:
    first = Prune("latency:0.5").run(stack(), Context(latency=Clock()))
    again = Prune("latency:0.5").run(stack(), Context(replay={"prune": first.decisions}))
    assert again.decisions == first.decisions
    assert again.targets == first.targets


def test_a_latency_without_a_clock_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nothing here measures"):
        Prune("latency:0.5").run(stack(), Context())


def test_the_runtime_measures_less_for_less() -> None:
    module = stack(width=2048)
    small = module.clone()
    Prune("flops:0.2").run(small, Context())
    assert OrtLatency(dims={"B": 8, "S": 128}).ratio(module, small) < 0.8
