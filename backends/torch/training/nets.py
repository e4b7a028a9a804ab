"""Nets that take a batch by name and return values by name, and their way back into a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from regraft.backends.torch.build import build
from regraft.backends.torch.generate import generate
from regraft.backends.torch.read_back import read_back
from regraft.backends.torch.results import named_outputs
from regraft.backends.torch.tensors import tensor_from
from regraft.backends.torch.weight_plan import WeightPlan, plan_weights
from regraft.ir.constants import weight
from regraft.ir.derive import source_names
from regraft.ir.errors import InputError, UnsupportedError, UsageError
from regraft.ir.extract import extract
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import einsum, linalg
from regraft.ir.ops.reshaping import transpose
from regraft.ir.opspec import Trait
from regraft.ir.steps import Transpose

_PRODUCTS = frozenset({linalg.matmul, linalg.gemm, einsum.einsum})


class NamedNet(nn.Module):
    """Computes some values of a module: batch by name in, tensors by name out.

    Args:
        module: The module; it is not changed.
        outputs: Values of its graph by the name that they are returned under.
        inputs: Values that the batch gives, by entry; graph inputs come under their own names.
    """

    def __init__(
        self,
        module: Module,
        outputs: Mapping[str, Value],
        inputs: Mapping[str, Value] | None = None,
    ) -> None:
        super().__init__()
        self.part = extract(module, inputs or {}, outputs)
        generated = generate(self.part, is_flat=True)
        self.net = build(generated)
        self.plan: WeightPlan = generated.plan
        self.critics = nn.ModuleDict()  # trained along, never stored
        self.module = module
        self._inputs = generated.inputs
        self._nest = generated.form.result
        self._first = {  # states start with the content that the module has for them
            state.input: tensor_from(module.weights[state.input].numpy())
            for state in module.states
            if state.input in self._inputs and state.input in module.weights
        }

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the values by name.

        Raises:
            InputError: When the batch lacks an input.
        """
        given = {**self._first, **batch}
        missing = [name for name in self._inputs if name not in given]
        if missing:
            raise InputError(
                f"the batch has no `{'`, `'.join(missing)}`",
                hint=f"it has {', '.join(f'`{name}`' for name in batch)}",
            )
        found: dict[str, Tensor] = named_outputs(
            self._nest, self.net(*[given[name] for name in self._inputs])
        )
        return found

    def paths_of(self, names: Sequence[str]) -> list[str]:
        """Returns the parameters of `net` that hold weights of the module.

        Args:
            names: Names of checkpoint tensors, or of the module's own weights.

        Raises:
            UsageError: For a name that is no float parameter that the values depend on.
        """
        parameters = dict(self.net.named_parameters())
        known: dict[str, str] = {self.plan.names.get(path) or path: path for path in parameters}
        made_of = self._made_of(known)
        found: dict[str, None] = {}
        for name in names:
            path = known.get(name, known.get(self.module.weights.resolve(name)))
            paths = made_of.get(name, []) if path is None else [path]
            if not paths:
                raise UsageError(
                    f"`{name}` is no float parameter that the objective depends on",
                    hint=f"there are {len(known)}, the first is `{next(iter(known), None)}`",
                )
            found.update(dict.fromkeys(paths))
        return list(found)

    def _made_of(self, known: Mapping[str, str]) -> dict[str, list[str]]:
        """Returns the parameters that hold content made of other tensors, by those.

        A module that was read from its text form has such content as it is.
        """
        found: dict[str, list[str]] = {}
        for name, path in known.items():
            if name in self.module.weights:
                for source in source_names(name, self.module.weights[name]):
                    found.setdefault(source, []).append(path)
        return found

    def matrices(self) -> list[str]:
        """Returns the parameters that are matrices of products, by what reads them."""
        found: dict[str, None] = {}
        for node in self.part.graph.walk():
            if node.op not in _PRODUCTS:
                continue
            for value in node.inputs:
                for slot in _slots(value, self.plan):
                    if slot in self.plan.slots and len(self.plan.slots[slot].shape) == 2:
                        found[slot] = None
        return [path for path in found if self.plan.slots[path].is_trainable]

    def parameter_of(self, value: Value) -> tuple[str, bool] | None:
        """Returns the parameter that a constant operand of the module is, and if it is transposed.

        None for an operand that is made of a parameter in another way.
        """
        node, is_transposed = value.producer, False
        while node is not None and node.op is transpose and node.output.rank == 2:
            is_transposed ^= node.attrs["perm"] in ((1, 0), None)
            node = None if node.inputs[0] is None else node.inputs[0].producer
        if node is None or node.op is not weight:
            return None
        tree = self.plan.trees.get(self.module.weights.resolve(node.attrs["name"]))
        while isinstance(tree, Transpose) and tree.perm == (1, 0) and tree not in self.plan.held:
            tree, is_transposed = tree.x, not is_transposed
        slot = None if tree is None else self.plan.held.get(tree)
        return None if slot is None or not slot.is_trainable else (slot.path, is_transposed)

    def store(self) -> tuple[str, ...]:
        """Stores the parameters in the module; returns the names of the tensors that changed.

        Raises:
            UnsupportedError: When the module holds a tensor in another form than the part does.
        """
        whole = plan_weights(self.module)
        state = {}
        for path, tensor in self.net.named_parameters():
            slot = whole.held.get(self.plan.slots[path].tree)
            if slot is None:
                raise UnsupportedError(
                    f"`{path}` is held differently by the whole module",
                    hint="canonicalize the module before it is trained",
                )
            state[slot.path] = tensor
        return tuple(read_back(self.module, state, partial=True))


def _slots(value: Value | None, plan: WeightPlan) -> list[str]:
    """Returns the registered tensors that an operand is a rearrangement of."""
    node: Node | None = None if value is None else value.producer
    while node is not None and node.op is not weight and Trait.DATA_MOVEMENT in node.op.traits:
        first = node.inputs[0]
        node = None if first is None else first.producer
    if node is None or node.op is not weight or node.graph is None:
        return []
    name = node.graph.scope.weights.resolve(node.attrs["name"])
    tree = plan.trees.get(name)
    return [] if tree is None else [leaf.path for leaf in plan.leaves(tree)]
