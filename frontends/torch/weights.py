"""Parameters, buffers and constants of an exported program as named weights of the IR."""

from __future__ import annotations

import torch
from torch.export.graph_signature import InputKind, InputSpec

from regraft.frontends.torch.aliases import Handle
from regraft.frontends.torch.errors import no_data_error
from regraft.frontends.torch.ops.complex_numbers import marked
from regraft.frontends.torch.tensors import array_from_tensor
from regraft.ir.builder import Builder
from regraft.ir.constants import weight as weight_op
from regraft.ir.graph import Value
from regraft.ir.weights import ArrayWeight, Role

_ROLES = {
    InputKind.PARAMETER: Role.PARAM,
    InputKind.BUFFER: Role.BUFFER,
    InputKind.CONSTANT_TENSOR: Role.CONST,
}


def role_of(spec: InputSpec) -> Role | None:
    """Returns what the tensor of a placeholder is for; None for one that is no tensor.

    A buffer outside the `state_dict` is a constant: it is computed, never loaded or trained.
    """
    if spec.kind is InputKind.BUFFER and spec.persistent is False:
        return Role.CONST
    return _ROLES.get(spec.kind)


class WeightTable:
    """Adds the tensors of a program to a module, each tensor once: tied names are aliases.

    Args:
        program: The program.
        b: Where the nodes that read them are made.
    """

    def __init__(self, program: torch.export.ExportedProgram, b: Builder) -> None:
        self._state = program.state_dict
        self._constants = program.constants
        self._b = b
        b.graph.scope.weights.trainable = True
        self._made: dict[tuple[object, ...], Value] = {}

    def handle(self, spec: InputSpec) -> Handle | None:
        """Returns the tensor of a placeholder; None for one that is no tensor."""
        role, name = role_of(spec), str(spec.target)
        return None if role is None else Handle(self.value(name, self._tensor(name), role))

    def _tensor(self, name: str) -> torch.Tensor:
        """Returns the tensor of a name.

        Raises:
            InputError: For a tensor without data.
        """
        tensor = self._state[name] if name in self._state else self._constants[name]
        if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
            raise no_data_error([name])
        return tensor

    def store(self, name: str, role: Role) -> None:
        """Keeps the content of a tensor that no node reads: the first content of a state."""
        self._b.graph.scope.weights.add(
            name, ArrayWeight(array_from_tensor(self._tensor(name))), role
        )

    def value(self, name: str, tensor: torch.Tensor, role: Role) -> Value:
        """Returns the value that reads a tensor; a tensor met before gains an alias."""
        # one storage, seen alike: tied weights are one tensor under several names
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), role)
        store = self._b.graph.scope.weights
        found = self._made.get(key)
        if found is not None and tensor.numel() and found.producer is not None:
            store.aliases[name] = found.producer.attrs["name"]
            return found
        if role is Role.CONST and tensor.numel() <= 128:
            return self._b.constant(array_from_tensor(tensor))
        is_complex = tensor.is_complex()
        # complex numbers are pairs in the IR: the parts are an axis of the weight, which trains
        parts = torch.view_as_real(tensor.detach().resolve_conj()) if is_complex else tensor
        used = store.add(name, ArrayWeight(array_from_tensor(parts)), role)
        value = self._b.op(weight_op, name=used)
        value.name = used
        if is_complex:
            marked(value)
        self._made[key] = value
        return value
