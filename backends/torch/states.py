"""States whose content the generated module keeps: buffers that `forward` reads and updates."""

from __future__ import annotations

from regraft.backends.torch.weight_plan import WeightPlan
from regraft.ir.graph import Value
from regraft.ir.module import Module, State
from regraft.ir.steps import Source

BUFFERS = "buffers"
EXPLICIT = "explicit"


def held_states(module: Module) -> dict[Value, State]:
    """Returns the graph inputs that are buffers: states whose first content the module has."""
    inputs = {value.name: value for value in module.graph.inputs}
    return {
        inputs[state.input]: state
        for state in module.states
        if state.input in inputs and state.input in module.weights
    }


def hold(plan: WeightPlan, module: Module, state: State) -> str:
    """Registers the buffer of a state; returns its path.

    One that the model keeps out of its `state_dict` stays out of it.
    """
    weight = module.weights[state.input]
    tree = plan.trees[state.input] = Source(state.input, weight)
    return plan.add(state.input, tree, module.weights.role(state.input), weight).path
