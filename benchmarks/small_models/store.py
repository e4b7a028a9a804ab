"""The small models by name, trained when they are first asked for and kept under a content key."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import regraft
from benchmarks.measure import ROOT
from benchmarks.small_models import copying, corpus, decoders, digits, vision
from benchmarks.small_models.training import Loss, Schedule, train
from regraft.ir.module import Module

CACHE = ROOT / ".cache" / "models"
Batch = Mapping[str, np.ndarray[Any, Any]]

_NOTES = "trained.json"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a small model is made.

    Args:
        name: Its name.
        version: Counted up when the model or its training changes: part of the content key.
        make: Makes the untrained model.
        loss: The loss of the batch of a step.
        schedule: How long and how fast it is trained.
        data: Gives a hash of the data: part of the content key.
        held_out: Yields batches that were not trained on.
        save: Writes the model into a folder.
        load: Reads it again; None for folders of `transformers`.
    """

    name: str
    version: int
    make: Callable[[], nn.Module]
    loss: Loss
    schedule: Schedule
    data: Callable[[], str]
    held_out: Callable[[], Iterator[Batch]]
    save: Callable[[Any, Path], None]
    load: Callable[[Path], nn.Module] | None = None


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "char-lm", 1, decoders.make_char_lm, decoders.char_loss,
            Schedule(700, 0.02, optimizer="muon"), corpus.digest, decoders.char_held_out,
            decoders.save_char_lm,
        ),
        Kind(
            "copy-lm", 1, decoders.make_copy_lm, decoders.copy_loss, Schedule(2000, 3e-3),
            lambda: f"{copying.NUM_LETTERS} letters", decoders.copy_held_out, decoders.save_llama,
        ),
        Kind(
            "digit-cnn", 1, vision.DigitCnn, vision.digit_loss, Schedule(1000, 4e-3), digits.digest,
            vision.held_out, vision.save_cnn, vision.load_cnn,
        ),
        Kind(
            "digit-vit", 1, vision.make_vit, vision.digit_loss,
            Schedule(1500, 0.02, optimizer="muon"), digits.digest, vision.held_out,
            vision.save_vit,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A trained model.

    Args:
        kind: How it was made.
        seed: Seed of its weights and of its batches.
        folder: Where it lies: a folder of `transformers`, but for the CNN.
        loss: Of the last training batch.
        cpu_s: Processor time of its training.
    """

    kind: Kind
    seed: int
    folder: Path
    loss: float
    cpu_s: float

    def net(self) -> Any:
        """Returns the PyTorch model in evaluation mode."""
        if self.kind.load is not None:
            return self.kind.load(self.folder)
        cls: Any = type(self.kind.make())
        return cls.from_pretrained(self.folder, local_files_only=True).eval()

    def module(self, form: str = "prefill") -> Module:
        """Returns the module; batch and, of language models, the length are dynamic.

        Args:
            form: `decode` for a language model that takes and returns a cache.
        """
        if self.kind.load is None:
            return regraft.load(f"{self.folder}#{form}" if form != "prefill" else self.folder)
        first = torch.from_numpy(next(self.held_out())["pixel_values"][:2])
        return regraft.capture(
            self.net(), (), {"pixel_values": first}, dynamic_shapes={"pixel_values": {0: "batch"}}
        )

    def held_out(self) -> Iterator[Batch]:
        """Yields batches that it was not trained on: inputs, and `labels` where there are any."""
        return self.kind.held_out()


def content_key(kind: Kind, seed: int) -> str:
    """Returns what a trained model is kept under: of its training, its data and the seed."""
    schedule = asdict(kind.schedule)
    if not kind.schedule.weight_decay:
        del schedule["weight_decay"]  # as before there was one: what is kept stays
    parts = (kind.name, kind.version, schedule, kind.data(), seed)
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    return f"{kind.name}-{seed}-{digest.hexdigest()[:12]}"


def get(name: str, seed: int = 0, *, cache: Path = CACHE) -> SmallModel:
    """Returns a trained model; the first time, trains it: some minutes.

    Args:
        name: `char-lm`, `copy-lm`, `digit-cnn` or `digit-vit`.
        seed: Seed of its weights and batches.
        cache: Where trained models are kept.

    Raises:
        ModelMissingError: When the digits are not there.
    """
    return get_kind(KINDS[name], seed, cache=cache)


def get_kind(kind: Kind, seed: int = 0, *, cache: Path = CACHE) -> SmallModel:
    """Returns a trained model of a kind; see `get`."""
    folder = cache / content_key(kind, seed)
    if not (folder / _NOTES).is_file():
        _train(kind, seed, folder)
    notes = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
    return SmallModel(kind, seed, folder, notes["loss"], notes["cpu_s"])


def _train(kind: Kind, seed: int, folder: Path) -> None:
    part = folder.with_name(folder.name + ".part")
    checkpoints = part / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    net = kind.make()
    torch.random.set_rng_state(state)
    trained = train(net, kind.loss, kind.schedule, seed, checkpoints)
    shutil.rmtree(checkpoints)
    kind.save(net, part)
    (part / _NOTES).write_text(trained.to_json() + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
