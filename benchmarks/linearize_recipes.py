"""Recipes that linearize the small language models, and what is measured of each.

A recipe swaps attention, fits the feature maps (transfer), and trains low-rank adapters on the next
token. Its figures are kept by name: a run that was stopped goes on with the next recipe.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import regraft
from benchmarks.kept_figures import Figures, kept
from benchmarks.measure import CACHE, Settings
from benchmarks.small_models import SmallModel, copying, corpus, get
from benchmarks.small_models.decoders import COPY_LENGTHS
from regraft.auditing import audit_module
from regraft.backends.onnx import to_proto
from regraft.backends.onnx.runtime import OrtRunner
from regraft.backends.torch.training import TorchTrainer
from regraft.ir.derive import source_names
from regraft.ir.extract import with_outputs
from regraft.ir.module import Module
from regraft.ir.ops.feature_maps import FEATURE_MAPS
from regraft.passes import quality
from regraft.passes.linearization.attention_weights import weights_of_mixer
from regraft.passes.linearization.audit import Ablation, ablated, layer_figures, mixers
from regraft.passes.linearization.linearize_attention import LinearizeAttention
from regraft.passes.linearization.methods import Merge
from regraft.passes.linearization.transfer import Losses
from regraft.passes.linearization.window_dropout import WindowDropout, droppable_windows
from regraft.passes.protocol import Context
from regraft.passes.recovery.data import Batch
from regraft.passes.recovery.objective import CrossEntropy, Term
from regraft.passes.recovery.task import Lora, Schedule, Task

VERSION = 2
"""Of the kept figures: counted up when recipes or what is measured change."""
_TOPIC = "linearize"
_TRAINING = 77
"""Seed of batches, beside the model's: training of the models takes others."""
LABELS = "labels"
_IGNORED = -100
_RATE, _LORA_RATE = 1e-2, 2e-3
RANK = 8
_LEAST = 1e-12
_ROWS = (slice(0, 16), slice(16, 32))
"""Of the batch of unseen text on which attention is compared."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is linearized.

    Args:
        method: Option of the pass.
        transfer: Updates of the feature maps.
        lora: Updates of adapters and maps afterwards.
        window: Keys that keep a softmax.
        merge: Of window and linear branch.
        features: Columns of the learned maps; 0: the channels of a head.
        loss: Of the transfer.
        dropout: Part of the steps of the second stage without the window, in the beginning.
        layers: Which; all when empty.
        rate: Highest learning rate of the transfer.
    """

    method: str = "hedgehog"
    transfer: int = 150
    lora: int = 200
    window: int = 0
    merge: Merge = "share"
    features: int = 0
    loss: Losses = "output"
    dropout: float = 0.0
    layers: tuple[int, ...] = ()
    rate: float = _RATE

    @property
    def key(self) -> str:
        """What its figures are kept under."""
        values = asdict(self)
        rate, layers = values.pop("rate"), "".join(map(str, values.pop("layers")))
        faster = () if rate == _RATE else (rate,)
        return "-".join(str(x) for x in (*values.values(), layers, *faster))


@dataclass(frozen=True, slots=True)
class NextTokens:
    """Batches of training text with the next token as label, the same for the same number.

    Args:
        name: The model's.
        seed: Of the batches.
    """

    name: str
    seed: int

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yields batches from number `first` on."""
        number = first
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> Batch:
        """Returns one."""
        seed = 1000 * (_TRAINING + self.seed)
        if self.name == "char-lm":
            ids = corpus.training_batch(seed, number, 16, 128)["input_ids"]
            after = ids
        else:
            made = copying.training_batch(seed, number, 32, *COPY_LENGTHS)
            ids, after = made["input_ids"], made["labels"]
        labels = np.full_like(ids, _IGNORED)
        labels[:, :-1] = after[:, 1:]
        mask = (
            np.ones_like(ids) if self.name == "char-lm" else (ids != copying.PAD).astype(ids.dtype)
        )
        return {"input_ids": ids, "attention_mask": mask, LABELS: labels}


def module_of(model: SmallModel) -> Module:
    """Returns the module, recognized and fused."""
    module = model.module()
    regraft.apply(module, "canonicalize,fuse,canonicalize", check="off")
    return module


def figure(model: SmallModel, module: Module) -> float:
    """Returns nats per character, or the part of copied letters that are right."""
    runner = OrtRunner(to_proto(module))
    if model.kind.name == "char-lm":
        return math.log(quality.perplexity(runner, model.held_out()).perplexity)
    return quality.accuracy(runner, model.held_out(), next_token=True).accuracy


def linearized(
    module: Module, data: NextTokens, recipe: Recipe, *, steps: int, folder: Path | None = None
) -> Module:
    """Returns a copy behind the swap, and behind the transfer where there are steps.

    Args:
        module: The teacher, recognized.
        data: Of the transfer.
        recipe: The method and its options.
        steps: Of the transfer.
        folder: Of checkpoints: a run that was stopped goes on.
    """
    made = module.clone()
    item = LinearizeAttention(
        recipe.method, recipe.layers, recipe.window, recipe.merge, recipe.features,
        steps=steps, rate=recipe.rate, loss=recipe.loss,
    )  # fmt: skip
    trainer = TorchTrainer(progress=False, folder=folder)
    item.run(made, Context(trainer=trainer, training=data))
    return made


def tuned(
    made: Module, data: NextTokens, recipe: Recipe, *, steps: int, folder: Path | None = None
) -> None:
    """Trains adapters of what attention reads and gives, and the maps, on the next token."""
    task = Task(
        (Term(CrossEntropy(), "logits", label=LABELS),),
        Schedule(steps, _LORA_RATE, seed=data.seed, checkpoint_every=50), projections(made),
        Lora(RANK, 2.0 * RANK),
        tuple(name for name in made.weights if name.startswith("attention.")),
    )  # fmt: skip
    trainer = TorchTrainer(progress=False, folder=folder)
    if not recipe.dropout:
        trainer.distill(made, [], task, data)
        return
    dropped = WindowDropout(data, recipe.dropout, 0.0, steps, data.seed)
    with droppable_windows(made):
        trainer.distill(made, [], task, dropped)


def projections(module: Module) -> tuple[str, ...]:
    """Returns the checkpoint's matrices that make queries, keys and values, and what reads them."""
    ends = tuple(f"{each}_proj.weight" for each in "qkvo")
    names = (source_names(name, module.weights[name]) for name in module.weights)
    found = tuple(name for group in names for name in group if name.endswith(ends))
    if not found:
        raise ValueError("the model has no projections of attention by these names")
    return tuple(dict.fromkeys(found))


def measured(name: str, seed: int, recipe: Recipe, settings: Settings) -> Figures:
    """Returns the figures of a recipe: after the swap, the transfer, and the adapters."""

    def make() -> Figures:
        model = get(name, seed)
        whole, data = module_of(model), NextTokens(name, seed)
        batches = _unseen(model)
        found: Figures = {"teacher": figure(model, whole)}
        swapped = linearized(whole, data, recipe, steps=0)
        found["swap"] = figure(model, swapped)
        found["swap attention"] = attention_figures(whole, swapped, batches)
        if recipe == replace(recipe, method="hedgehog", window=0):
            found["swap kl"] = fed_by_teacher(whole, swapped, batches)
        made = swapped
        folder = CACHE / _TOPIC / f"{name}-{seed}-{recipe.key}-{VERSION}.run"
        if recipe.transfer:
            steps, run = recipe.transfer, folder / "transfer"
            made = linearized(whole, data, recipe, steps=steps, folder=run)
            found["transfer"] = figure(model, made)
            found["transfer attention"] = attention_figures(whole, made, batches)
            if "swap kl" in found:
                found["transfer kl"] = fed_by_teacher(whole, made, batches)
        if recipe.window:
            found["transfer branches"] = branches(model, made)
        if recipe.lora:
            tuned(made, data, recipe, steps=recipe.lora, folder=folder / "lora")
            found["lora"] = figure(model, made)
            if recipe.window:
                found["lora branches"] = branches(model, made)
        regraft.save(made, _trained_path(name, seed, recipe), force=True)
        shutil.rmtree(folder, ignore_errors=True)
        return found

    return kept(_TOPIC, f"{name}-{seed}-{recipe.key}", VERSION, settings, make)


def _unseen(model: SmallModel) -> list[Batch]:
    """Returns two batches that no model was trained on."""
    batch = next(iter(model.held_out()))
    return [{name: array[rows] for name, array in batch.items()} for rows in _ROWS]


def _trained_path(name: str, seed: int, recipe: Recipe) -> Path:
    return CACHE / _TOPIC / f"{name}-{seed}-{recipe.key}-{VERSION}.rg"


def trained(name: str, seed: int, recipe: Recipe, settings: Settings) -> Module:
    """Returns the module that a recipe leaves; trains it where it is not kept."""
    path = _trained_path(name, seed, recipe)
    again = replace(settings, again=settings.again or not path.is_file())
    measured(name, seed, recipe, again)
    return regraft.load(path)


def audited(name: str, seed: int, recipe: Recipe, settings: Settings) -> Figures:
    """Returns what `regraft audit` says of the module that a recipe leaves, on unseen text."""
    made = trained(name, seed, recipe, settings)

    def make() -> Figures:
        model = get(name, seed)
        return audit_module(made, module_of(model), _unseen(model))

    return kept(_TOPIC, f"audit-{name}-{seed}-{recipe.key}", VERSION, settings, make)


def fed_by_teacher(whole: Module, made: Module, batches: list[Batch]) -> list[float]:
    """Returns KL of the softmax from the weights of Hedgehog's maps of the same queries and keys.

    Args:
        whole: The teacher.
        made: What holds the maps.
        batches: Without padding.
    """
    nodes = mixers(whole)
    wanted = {
        f"{number} {slot}": node.inputs[idx]
        for number, node in enumerate(nodes)
        for idx, slot in ((0, "q"), (1, "k"))
    }
    values = {name: value for name, value in wanted.items() if value is not None}
    run, found = OrtRunner(to_proto(with_outputs(whole, values))), np.zeros(len(nodes))
    apply = FEATURE_MAPS["hedgehog"].apply
    for batch in batches:
        given = run({name: batch[name] for name in whole.input_types})
        for number, node in enumerate(nodes):
            q, k = (np.asarray(given[f"{number} {slot}"]) for slot in "qk")
            before = weights_of_mixer(node, {"q": q, "k": k})
            maps = (made.weights[f"attention.{number}.{slot}_features"].numpy() for slot in "qk")
            fq, fk = (apply(x @ matrix) for x, matrix in zip((q, k), maps, strict=True))
            after = np.tril(fq @ fk.swapaxes(-1, -2))
            after = after / after.sum(-1, keepdims=True)
            logs = np.log(np.maximum(before, _LEAST)) - np.log(np.maximum(after, _LEAST))
            found[number] += (before * logs).sum(-1).mean() / len(batches)
    return [float(each) for each in found]


def attention_figures(whole: Module, made: Module, batches: list[Batch]) -> list[Figures]:
    """Returns the audit of every layer, as plain data."""
    found = layer_figures(whole, made, batches, lambda module: OrtRunner(to_proto(module)))
    return [asdict(each) for each in found]


def branches(model: SmallModel, made: Module) -> dict[str, float]:
    """Returns the figure with both branches, the window alone, the linear one alone, and none."""
    return {str(each): figure(model, ablated(made, each)) for each in Ablation}
