"""States whose content the generated module keeps: buffers that `forward` reads and updates.

Inputs that the captured module wrote to are states too: `forward` writes to them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from regraft.backends.torch.weight_plan import WeightPlan
from regraft.ir.call_form import OUTPUTS, leaves
from regraft.ir.graph import Value
from regraft.ir.module import Module, State
from regraft.ir.opspec import Trait
from regraft.ir.steps import Source

if TYPE_CHECKING:
    from regraft.backends.torch.graph_emitter import GraphEmitter

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


def written_inputs(module: Module, held: Mapping[Value, object]) -> dict[Value, State]:
    """Returns the inputs that the captured module wrote to and did not return."""
    if OUTPUTS not in module.meta:
        return {}
    returned = set(leaves(module.meta[OUTPUTS]))
    inputs = {value.name: value for value in module.graph.inputs if value not in held}
    known = set(module.graph.output_names)
    if not returned <= known:  # passes changed the outputs
        return {}
    return {
        inputs[state.input]: state
        for state in module.states
        if state.input in inputs and state.output in known - returned
    }


def write_states(
    emitter: GraphEmitter,
    module: Module,
    places: Mapping[Value, str],
    states: Mapping[Value, State],
    results: dict[str, str],
) -> None:
    """Adds the lines that write states, and takes what they write out of the results.

    Results that may be the memory that is written to, or a part of it, are copied before.

    Args:
        emitter: The `forward` under construction; everything is computed.
        module: The module.
        places: The expression that holds each state.
        states: The states by input.
        results: Expressions by output; changed.
    """
    if not states:
        return
    outputs = dict(zip(module.graph.output_names, module.graph.outputs, strict=True))
    ends = {state.output: value for value, state in states.items()}
    for name, value in outputs.items():
        root = _memory_of(value)
        if root in states and not (name in ends and ends[name] is root and len(states) == 1):
            results[name] = emitter.temp(f"{results[name]}.clone()", "kept")
    for value, state in states.items():
        is_buffer = places[value].startswith("self")
        text = results.pop(state.output)
        emitter.lines.add(f"{places[value]}.copy_({text}{'.detach()' if is_buffer else ''})")


def _memory_of(value: Value) -> Value:
    """Returns the graph input that a value may be a view of, or the value that is none."""
    while value.producer is not None and value.producer.op.traits & Trait.DATA_MOVEMENT:
        first = value.producer.inputs[0]
        if first is None:
            break
        value = first
    return value
