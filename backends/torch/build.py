"""`to_torch`: compiles generated source in memory and fills the module with weights."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from typing import Any

from torch import nn

from regraft.backends.torch.emitter import Emit
from regraft.backends.torch.generate import CLASS_NAME, Generated, generate
from regraft.backends.torch.library.reading import assign
from regraft.backends.torch.ops import FAMILIES
from regraft.backends.torch.pickling import GENERATED, copied, pickled
from regraft.backends.torch.states import BUFFERS, EXPLICIT
from regraft.backends.torch.tensors import tensor_from
from regraft.backends.torch.weight_plan import WeightPlan
from regraft.backends.torch.weight_source import is_inline
from regraft.ir.errors import UsageError
from regraft.ir.module import Module


def to_torch(
    module: Module,
    *,
    states: str = BUFFERS,
    families: Sequence[tuple[Emit, ...]] = FAMILIES,
) -> nn.Module:
    """Returns a trainable `nn.Module` that computes what the module computes.

    Its `forward` is generated Python (`source_of(net)`), its `state_dict` has the model's own
    names. It owns its tensors: training it changes the module only through `read_back`.

    Args:
        module: The module; it is not changed.
        states: `buffers`: states whose first content the module has are buffers that `forward`
            updates, as in the model that was captured; `explicit`: all are arguments and results.
        families: Emitters by operator; default: regraft's own.

    Raises:
        UsageError: For another word for `states`.
        UnsupportedError: When an operator has no PyTorch form, naming all that have none.
    """
    if states not in (BUFFERS, EXPLICIT):
        raise UsageError(f"unknown states `{states}`", hint=f"{BUFFERS} or {EXPLICIT}")
    return build(generate(module, families=families, states=states))


def build(generated: Generated) -> nn.Module:
    """Returns an instance of a generated class, with its weights."""
    net = instance(generated)
    fill(net, generated.plan)
    return net.eval()


def instance(generated: Generated) -> nn.Module:
    """Returns an instance of a generated class, its weights not filled in."""
    net = compile_source(generated.source, f"<regraft {id(generated):x}>")[CLASS_NAME]()
    assert isinstance(net, nn.Module)
    made = type(net)
    # no module of Python has the class: pickles hold the source, copies share the class
    for name, item in ((GENERATED, generated), ("__reduce__", pickled), ("__deepcopy__", copied)):
        setattr(made, name, item)
    return net


def compile_source(source: str, file_name: str) -> dict[str, Any]:
    """Runs generated source; returns its names. Tracebacks show its lines."""
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    names: dict[str, Any] = {"__name__": "regraft_generated_model", "__file__": file_name}
    exec(compile(source, file_name, "exec"), names)
    return names


def fill(net: nn.Module, plan: WeightPlan) -> None:
    """Gives a new module the content of its weights, one tensor at a time."""
    for path, slot in plan.slots.items():
        if not is_inline(slot):
            assign(net, path, tensor_from(slot.weight.numpy()))


def source_of(net: nn.Module) -> str:
    """Returns the Python source of a module made by `to_torch`."""
    generated: Generated = getattr(type(net), GENERATED)
    return generated.source
