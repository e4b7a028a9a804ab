"""The real sentence encoder, its tokenizer and texts: files of packages, read and never imported.

`python -m benchmarks.encoder --missing` prints what `make recovery-models` installs into
`.models/site`.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import regraft
from benchmarks.encyclopedia import paragraphs
from benchmarks.fixtures.vision_ops import declare
from benchmarks.models import SENTENCE_ENCODER, ModelMissingError, Packaged, find
from regraft.ir.module import Module
from regraft.passes.recovery.data import Batch, Examples, text_examples
from regraft.passes.recovery.fixed import FixedBatches, batches_by_length

MAX_TOKENS = 128
"""Of a piece of text."""

MAX_ELEMENTS = 1024
"""Tokens of a training batch."""

_MAX_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """A file inside a package of an exact version; `suffix` is the end of its path there."""

    name: str
    package: str
    version: str
    suffix: str

    @property
    def requirement(self) -> str:
        """The exact requirement, `package==version`."""
        return f"{self.package}=={self.version}"


_TEXTS = "gensim/test/test_data/"
TEST_TEXT = PackagedFile("lee", "gensim", "4.4.0", _TEXTS + "lee.cor")
NEWS = PackagedFile("lee-background", "gensim", "4.4.0", _TEXTS + "lee_background.cor")
ENCYCLOPEDIA = PackagedFile(
    "wikipedia", "gensim", "4.4.0",
    _TEXTS + "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
)  # fmt: skip
FILES = (SENTENCE_ENCODER, TEST_TEXT, NEWS, ENCYCLOPEDIA)


class SentenceEncoder(nn.Module):  # type: ignore[misc]  # types of PyTorch are not read here
    """Token states and their mean, of length one: what the model is used for."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask[..., None].to(states.dtype)
        mean = (states * counts).sum(1) / counts.sum(1).clamp(min=1e-9)
        return {"embedding": nn.functional.normalize(mean, dim=-1)}


def folder() -> Path:
    """Returns the folder of the encoder.

    Raises:
        ModelMissingError: When its package is not installed.
    """
    return find(SENTENCE_ENCODER).parent


def encoder() -> Module:
    """Returns the encoder as a module: token ids and mask in, `embedding` f32[batch, 384] out."""
    declare()  # where a torchvision is installed, transformers imports it
    from transformers import AutoModel  # an extra

    bert = AutoModel.from_pretrained(folder(), local_files_only=True)
    # two tensors: one that is given twice would be captured as one input
    ids, mask = torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=_MAX_POSITIONS)}
    module = regraft.capture(
        SentenceEncoder(bert).eval(), (ids, mask), dynamic_shapes=(sizes, sizes)
    )
    regraft.apply(module, "canonicalize,fuse", check="off")
    return module


def _tokenizer() -> Any:
    from transformers import AutoTokenizer  # an extra

    tokenizer = AutoTokenizer.from_pretrained(folder(), local_files_only=True)

    def tokenize(text: str) -> dict[str, list[int]]:
        found = tokenizer(text, truncation=True, max_length=MAX_TOKENS)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return tokenize


def training_data(batch_size: int) -> Examples:
    """Returns pieces of news and encyclopedia texts, none of them in `test_batch`."""
    return Examples(_pieces(), batch_size)


def training_batches(max_elements: int = MAX_ELEMENTS) -> FixedBatches:
    """Returns the same pieces, those of like length together, in batches that come back."""
    return batches_by_length(_pieces(), max_elements)


def _pieces() -> list[Batch]:
    with tempfile.TemporaryDirectory() as folder:
        articles = Path(folder) / "articles.txt"
        articles.write_text("\n".join(paragraphs(find(ENCYCLOPEDIA))), encoding="utf-8")
        return text_examples([articles, find(NEWS)], _tokenizer(), max_tokens=MAX_TOKENS)


def test_batch() -> Batch:
    """Returns the 50 news texts of the Lee corpus, in pieces."""
    items = text_examples(
        [find(TEST_TEXT)], _tokenizer(), max_tokens=MAX_TOKENS, encoding="latin-1"
    )
    return Examples(items, len(items), seed=None).collate(items)


def documents() -> tuple[Batch, Any]:
    """Returns the beginnings of these texts, and how alike people find each two, f64[50, 50]."""
    file, tokenize = find(TEST_TEXT), _tokenizer()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    items = [
        {name: np.asarray(ids, np.int64) for name, ids in tokenize(line).items()}
        for line in lines
        if line.strip()
    ]
    people = np.loadtxt(file.parent / "similarities0-1.txt")
    return Examples(items, len(items), seed=None).collate(items), people


def cosines(a: Any, b: Any) -> Any:
    """Returns the cosine of each pair of embeddings of length one, f64[batch]."""
    return np.einsum("bd,bd->b", np.asarray(a, np.float64), np.asarray(b, np.float64))


def missing_requirements(files: Iterable[Packaged] = FILES) -> list[str]:
    """Returns the requirements, each once, whose files are not installed."""
    absent: dict[str, None] = {}
    for file in files:
        try:
            find(file)
        except ModelMissingError:
            absent[file.requirement] = None
    return list(absent)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__)
    parser.add_argument("--missing", action="store_true", help="print what is not installed")
    if parser.parse_args().missing:
        print("\n".join(missing_requirements()))
        return 0
    print("\n".join(str(find(file)) for file in FILES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
