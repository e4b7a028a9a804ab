"""Soft prompts: trained vectors that stand before every text, for a model that stays as it is.

The vectors become further rows of the token table, with ids of their own: the model's graph is the
same for longer texts, and a prompted text is one that starts with these ids.

Source: Xu et al., Compress, Then Prompt, 2023; Lester et al., The Power of Scale for
Parameter-Efficient Prompt Tuning, 2021 (start at rows of the table).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import weight
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops.gathering import gather
from regraft.ir.ops.slicing import concat
from regraft.ir.opspec import Trait
from regraft.ir.weights import ArrayWeight, Role
from regraft.passes.recovery.data import Array, Batch, Data


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """A prompt that a module has.

    Args:
        weight: Name of the weight that holds it: what is trained.
        input: Graph input that takes token ids.
        ids: The ids of its vectors, in order.
    """

    weight: str
    input: str
    ids: tuple[int, ...]


def add_soft_prompt(module: Module, tokens: int, *, input: str, seed: int = 0) -> SoftPrompt:
    """Adds vectors to the table of tokens, in place; texts without them give what they gave.

    Args:
        module: The module.
        tokens: How many, at least one.
        input: Graph input that takes token ids.
        seed: Chooses the rows that they start as.

    Raises:
        UsageError: When no table is read by that input, or no token is asked for.
    """
    if tokens < 1:
        raise UsageError(f"a soft prompt of {tokens} tokens", hint="ask for at least one")
    found = next(_tables(module, input), None)
    if found is None:
        raise UsageError(
            f"no table of vectors is read at the ids of input `{input}`",
            hint=f"inputs: {', '.join(f'`{value.name}`' for value in module.graph.inputs)}",
        )
    lookup, table, name = found
    array = module.weights[name].numpy()
    rows = np.random.default_rng(seed).choice(len(array), tokens, replace=tokens > len(array))
    build = Builder(module.graph, lookup, lookup.loc)
    prompt = build.weight(f"{name}.prompt", ArrayWeight(array[rows].copy()), Role.PARAM)
    lookup.set_operand(0, build.op(concat, table, prompt, axis=0))
    first = len(array)
    return SoftPrompt(str(prompt.name), input, tuple(range(first, first + tokens)))


@dataclass(frozen=True, slots=True)
class Prompted:
    """Batches of texts that start with a prompt.

    Args:
        data: Batches of texts, `[B, S]`.
        prompt: What they start with.
        beside: What other entries `[B, S]` hold there: 1 in a mask, the ignored label in labels.
    """

    data: Data
    prompt: SoftPrompt
    beside: Mapping[str, int] = field(default_factory=dict)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from number `first` on."""
        for batch in self.data.batches(first):
            yield self.add_to(batch)

    def add_to(self, batch: Batch) -> dict[str, Array]:
        """Returns a batch with the prompt before every text."""
        size = len(batch[self.prompt.input])
        found = dict(batch)
        starts = {self.prompt.input: self.prompt.ids}
        starts |= {name: (value,) * len(self.prompt.ids) for name, value in self.beside.items()}
        for name, start in starts.items():
            rows = np.tile(np.asarray(start, batch[name].dtype), (size, 1))
            found[name] = np.concatenate([rows, batch[name]], axis=1)
        return found


def _tables(module: Module, input: str) -> Iterator[tuple[Node, Value, str]]:
    """Yields the nodes that look ids of an input up in a table, with the table and its name."""
    for node in module.graph:
        if node.op is not gather or node.attrs["axis"] != 0:
            continue
        table, ids = node.inputs
        if table is None or table.producer is None or table.producer.op is not weight:
            continue
        if table.rank == 2 and _is_input(ids, input):
            yield node, table, module.weights.resolve(table.producer.attrs["name"])


def _is_input(ids: Value | None, input: str) -> bool:
    while ids is not None and ids.producer is not None:
        node = ids.producer
        # a cast or a change of shape between
        if len(node.inputs) != 1 or not node.op.traits & (Trait.DATA_MOVEMENT | Trait.ELEMENTWISE):
            return False
        ids = node.inputs[0]
    return ids is not None and ids.name == input
