"""`Trainer` in PyTorch: fits modules to teachers end to end, and block after block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from regraft.backends.torch.training.adapters import attach, fold
from regraft.backends.torch.training.critics import critics_of
from regraft.backends.torch.training.fading import Fading
from regraft.backends.torch.training.frozen import FrozenValues, Key, frozen_values
from regraft.backends.torch.training.hidden_states import HiddenStates
from regraft.backends.torch.training.loop import Loop, Objective, Place
from regraft.backends.torch.training.nets import NamedNet
from regraft.backends.torch.training.objective import (
    loss_of,
    objective_of,
    student_values,
    teacher_values,
)
from regraft.backends.torch.training.processes import joined_group
from regraft.backends.torch.training.refit import refit_layer
from regraft.backends.torch.training.rounding import (
    attach_rounding,
    rounded_paths,
    scales_of,
)
from regraft.backends.torch.training.zeros import HeldZeros
from regraft.ir.constants import weight
from regraft.ir.derive import source_names
from regraft.ir.extract import nodes_between
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.recovery.data import Batch, Data, Stream
from regraft.passes.recovery.objective import Term
from regraft.passes.recovery.task import (
    Adapter,
    Block,
    FlexRound,
    Reconstruction,
    Refit,
    Schedule,
    Task,
    TrainingReport,
)

_INPUT, _TARGET, _RESULT = "block input", "block target", "block result"


@dataclass(frozen=True, slots=True)
class _Run:
    """A net and what it is fitted with."""

    label: str
    net: NamedNet
    objective: Objective
    schedule: Schedule
    data: Data
    paths: Sequence[str]
    adapter: Adapter | None
    folder: Path | None
    facts: Mapping[str, str]
    held_out: Sequence[Batch] = field(default=())
    frozen: FrozenValues | None = None
    beside: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TorchTrainer:
    """Trains modules in PyTorch (`Trainer`), in all processes that `torchrun` started.

    Args:
        device: Where the nets run.
        folder: Holds checkpoints, from which an interrupted run resumes, and values of the
            teacher that do not fit; None for no checkpoints, and a temporary folder.
        progress: Whether a terminal shows how far a run is.
        shards: Whether each of several processes holds a part of the weights while they are
            trained (FSDP2), not all of them (DDP).
    """

    device: str = "cpu"
    folder: Path | None = None
    progress: bool = True
    shards: bool = False

    def distill(
        self,
        module: Module,
        teachers: Sequence[Module],
        task: Task,
        data: Data,
        held_out: Sequence[Batch] = (),
    ) -> TrainingReport:
        """Fits the module's weights to its teachers and labels, in place."""
        values = student_values(module, task.terms)
        whole = NamedNet(module, values)
        paths = _trained_paths(whole, task.adapter, task.trained, frozenset())
        names = [whole.plan.names.get(path, path) for path in paths]
        beside = [whole.plan.names.get(path, path) for path in whole.paths_of(task.beside)]
        cut = frozen_values(module, values.values(), frozenset([*names, *beside]))
        inputs = {f"frozen {idx}": value for idx, value in enumerate(cut)}
        net = NamedNet(module, values, inputs)
        critics = critics_of(task.terms, values, task.schedule.seed)
        net.critics.update(critics)
        fixed = [NamedNet(module, inputs)] if inputs else []
        for number, teacher in enumerate(teachers):
            wanted = teacher_values(teacher, number, task.terms)
            fixed += [NamedNet(teacher, wanted)] if wanted else []
        for each in fixed:
            each.to(self.device).requires_grad_(False)
        facts = {
            "terms": "; ".join(map(_described, task.terms)),
            "teachers": str(len(teachers)),
            "adapter": repr(task.adapter),
        }
        objective = objective_of(task.terms, len(teachers), critics, task.schedule.batches_per_step)
        frozen = FrozenValues(fixed, task.max_cache_bytes, self.folder)
        try:
            return self._fit(
                _Run(
                    "distillation", net, objective, task.schedule, data, net.paths_of(names),
                    task.adapter, self.folder, facts, held_out, frozen, net.paths_of(beside),
                )
            )  # fmt: skip
        finally:
            frozen.close()

    def reconstruct(
        self,
        module: Module,
        teacher: Module,
        plan: Reconstruction,
        samples: Sequence[Batch],
    ) -> list[TrainingReport]:
        """Fits blocks of the module to the teacher's values, one by one, in place.

        Blocks are fed what the teacher has (teacher forcing), so that the weights of one block
        are in memory at a time. The teacher's values are computed from those of the block before,
        and kept until no later block needs them. Weights that other parts read stay as they are.
        """
        reports = []
        with HiddenStates(
            teacher, samples, plan.max_cache_bytes, self.folder, self.device
        ) as states:
            for number, block in enumerate(plan.blocks):
                states.compute(_read_by(block))
                run = self._block_run(module, plan, number, states)
                reports.append(self._fit(run))
                states.keep({v for each in plan.blocks[number + 1 :] for v in _read_by(each)})
        return reports

    def refit(
        self,
        module: Module,
        teacher: Module,
        places: Sequence[Refit],
        samples: Sequence[Batch],
        ridge: float = 0.01,
    ) -> tuple[str, ...]:
        """Solves for linear layers by least squares, one after the other, in place.

        Every process of several solves for the same, without exchange. Layers are fed what the
        module has after those before them were solved for.
        """
        changed: dict[str, None] = {}
        for place in places:
            names = refit_layer(module, teacher, place, samples, ridge, self.device)
            changed.update(dict.fromkeys(names))
        return tuple(changed)

    def _block_run(
        self, module: Module, plan: Reconstruction, number: int, states: HiddenStates
    ) -> _Run:
        block = plan.blocks[number]
        own = {f"{_INPUT} {idx}": pair[0] for idx, pair in enumerate(block.inputs)}
        theirs = {f"{_INPUT} {idx}": pair[1] for idx, pair in enumerate(block.inputs)}
        net = NamedNet(module, {_RESULT: block.output}, own)

        def objective(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            mask = None if block.mask is None else batch[block.mask]
            return loss_of(plan.loss, wrapped(batch)[_RESULT], [batch[_TARGET]], None, mask)

        frozen = _read_elsewhere(module, frozenset(own.values()), block.output)
        return _Run(
            f"block {number + 1} of {len(plan.blocks)}", net, objective, plan.schedule,
            Stream(states.batches({**theirs, _TARGET: block.target})),
            _trained_paths(net, plan.adapter, None, frozen), plan.adapter,
            None if self.folder is None else self.folder / f"block_{number}",
            {"block": f"{number} of {len(plan.blocks)}", "loss": repr(plan.loss)},
        )  # fmt: skip

    def _fit(self, run: _Run) -> TrainingReport:
        """Trains, folds adapters, and stores the weights in the module."""
        with joined_group(self.device, shards=self.shards) as group, torch.random.fork_rng():
            inner = run.net.net
            inner.requires_grad_(False)
            zeros = HeldZeros(run.net, run.paths)
            rounded: dict[str, Value] = {}
            if isinstance(run.adapter, FlexRound):
                zeros.check_adapter(run.adapter)
                rounded = attach_rounding(run.net, list(run.paths), run.adapter)
            elif run.adapter is None:
                for path in run.paths:
                    inner.get_parameter(path).requires_grad_(True)
                zeros.hold()
            else:
                zeros.check_adapter(run.adapter)
                attach(inner, run.paths, run.adapter, run.schedule.seed)
                for path in run.beside:
                    inner.get_parameter(path).requires_grad_(True)
            loop = Loop(
                run.net, run.objective, run.schedule, run.data,
                Place(self.device, group, run.folder, self.progress),
                held_out=run.held_out, label=run.label, facts=run.facts,
                prepare=_unprepared if run.frozen is None else run.frozen.add_to,
                before_step=Fading(run.net, run.schedule.steps).before,
            )  # fmt: skip
            stopped = loop.run()
        scales = {x: each.numpy() for x, each in scales_of(run.net, rounded).items()}
        if run.adapter is not None:
            fold(inner, run.paths)
        zeros.check()
        history = loop.history
        return TrainingReport(
            history.step, tuple(history.losses), tuple(history.held_out), stopped, run.net.store(),
            scales,
        )  # fmt: skip


def _unprepared(key: Key | None, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return batch


def _described(term: Term) -> str:
    return f"{term.weight} {term.loss} {term.student} {term.teacher} {term.label} {term.mask}"


def _trained_paths(
    net: NamedNet,
    adapter: Adapter | None,
    names: Sequence[str] | None,
    frozen: frozenset[str],
) -> list[str]:
    """Returns the parameters that a run may change, or that it adapts."""
    if names is not None:
        return net.paths_of(names)
    paths = [path for path, _ in net.net.named_parameters()] if adapter is None else net.matrices()
    free = [path for path in paths if net.plan.names.get(path, path) not in frozen]
    return rounded_paths(net, adapter, free) if isinstance(adapter, FlexRound) else free


def _read_by(block: Block) -> list[Value]:
    """Returns the teacher's values that a block is fitted with."""
    return [*(theirs for _, theirs in block.inputs), block.target]


def _read_elsewhere(module: Module, inputs: frozenset[Value], output: Value) -> frozenset[str]:
    """Returns the checkpoint tensors that nodes outside a block read; cost O(nodes)."""
    inside, _ = nodes_between(inputs, [output])
    own = set(inside)
    found: set[str] = set()
    for node in module.graph.walk():
        if node.op is not weight:
            continue
        if all(user in own for user in node.output.users) and node.output.num_uses:
            continue
        name = module.weights.resolve(node.attrs["name"])
        found.update(source_names(name, module.weights[name]))
    return frozenset(found)
