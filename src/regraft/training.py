"""What passes train with: the trainer where PyTorch is installed, and the data of `--train`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regraft.frontends.huggingface.tokenizers import read_tokenizer
from regraft.ir.errors import InputError, UnsupportedError
from regraft.ir.module import Module
from regraft.passes.protocol import Trainer
from regraft.passes.quality.measure import LABELS
from regraft.passes.recovery.data import Batch, Data, text_examples
from regraft.passes.recovery.fixed import FixedBatches, batches_by_length
from regraft.passes.recovery.task import Reconstruction, Refit, Task, TrainingReport
from regraft.quality_data import TOKENIZER, input_sizes
from regraft.samples import bind_samples, read_samples

if TYPE_CHECKING:
    from regraft.backends.torch.training import TorchTrainer

MAX_TOKENS = 128
MAX_ELEMENTS = 1024
"""Tokens of a batch of texts."""

_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"


@dataclass(frozen=True, slots=True)
class LateTrainer:
    """A `Trainer` that imports PyTorch when it is first asked, which takes a second.

    Args:
        folder: Holds checkpoints, from which an interrupted run resumes; None for none.
    """

    folder: Path | None = None

    def _made(self, part: str) -> TorchTrainer:
        from regraft.backends.torch.training import TorchTrainer

        return TorchTrainer(folder=None if self.folder is None else self.folder / part)

    def distill(
        self,
        module: Module,
        teachers: Sequence[Module],
        task: Task,
        data: Data,
        held_out: Sequence[Batch] = (),
    ) -> TrainingReport:
        """Fits the module's weights to its teachers and labels, end to end, in place."""
        return self._made("distillation").distill(module, teachers, task, data, held_out)

    def reconstruct(
        self, module: Module, teacher: Module, plan: Reconstruction, samples: Sequence[Batch]
    ) -> list[TrainingReport]:
        """Fits parts of the module to the teacher's values, one by one, in place."""
        return self._made("blocks").reconstruct(module, teacher, plan, samples)

    def refit(
        self,
        module: Module,
        teacher: Module,
        places: Sequence[Refit],
        samples: Sequence[Batch],
        ridge: float,
    ) -> tuple[str, ...]:
        """Solves for linear layers, one after the other, in place."""
        return self._made("refit").refit(module, teacher, places, samples, ridge)


def trainer_source(folder: Path | None = None) -> Trainer | None:
    """Returns the trainer, None where PyTorch is not installed."""
    return None if importlib.util.find_spec("torch") is None else LateTrainer(folder)


def read_training(
    path: Path, module: Module, tokenizers: Sequence[Path] = (), seed: int = 0
) -> FixedBatches:
    """Reads the data of `--train`.

    Args:
        path: A `.npz` file, one batch; a text file; or a folder of either.
        module: The model that takes it.
        tokenizers: Folders that may have the model's `tokenizer.json`.
        seed: Seed of the order of batches.

    Raises:
        InputError: When it cannot be read, or the model takes something else.
        UnsupportedError: For texts where there is no tokenizer.
    """
    texts = _texts(path)
    if texts:
        data = batches_by_length(_pieces(texts, module, tokenizers), MAX_ELEMENTS, seed=seed)
    else:
        data = FixedBatches(read_samples(path), seed)
    bind_samples(module, data.items[:1], beside=(LABELS,))
    return data


def _texts(path: Path) -> list[Path]:
    if path.is_dir():
        return [] if any(path.glob("*.npz")) else sorted(path.glob("*.txt"))
    return [path] if path.exists() and path.suffix != ".npz" else []


def _pieces(files: Sequence[Path], module: Module, tokenizers: Sequence[Path]) -> list[Batch]:
    sizes = input_sizes(module)
    strange = sorted(sizes.keys() - {_IDS, _MASK, _TYPES})
    if _IDS not in sizes or strange:
        raise InputError(
            f"`{files[0]}` is text, and the model takes `{strange[0] if strange else _IDS}`",
            hint="prepare `.npz` files: `numpy.savez(path, input_name=array, …)`",
        )
    file = next((each / TOKENIZER for each in tokenizers if (each / TOKENIZER).is_file()), None)
    if file is None:
        raise UnsupportedError(
            f"`{files[0]}` is text, and there is no `{TOKENIZER}` beside the model",
            hint="put it there, or prepare `.npz` files",
        )
    length = min((size for shape in sizes.values() for size in shape[1:] if size), default=None)
    examples = text_examples(files, _Tokenize(file), max_tokens=length or MAX_TOKENS)
    wanted = [{name: item[name] for name in sizes} for item in examples]
    if length is None:
        return [dict(item) for item in wanted]
    whole = [dict(item) for item in wanted if len(item[_IDS]) == length or _MASK in sizes]
    return list(_filled(whole, length))


def _filled(examples: Sequence[Batch], length: int) -> Iterator[Batch]:
    """Yields examples filled up to the one length that the model takes."""
    for item in examples:
        yield {name: np.pad(ids, (0, length - len(ids))) for name, ids in item.items()}


class _Tokenize:
    """Texts as ids by input name, by a `tokenizer.json`."""

    def __init__(self, file: Path) -> None:
        self._tokenizer = read_tokenizer(file)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return {_IDS: ids, _MASK: [1] * len(ids), _TYPES: [0] * len(ids)}
