"""The real sentence encoder as a file, and its texts as token ids: made once, then read."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.measure import CACHE
from benchmarks.models import SENTENCE_ENCODER, find

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

FOLDER = CACHE / "quant"
SHAPES = ((1, 16), (1, 128), (8, 128))
MAX_TOKENS = 128
BATCH = 16
_NUM_CALIBRATION = 128
_LENGTHS = range(20, 500)
"""Characters of a sentence; what is shorter or longer was cut in the wrong place."""


@dataclass(frozen=True)
class Encoder:
    """The model as people have it, and sentences for it.

    Args:
        path: An ONNX file, f32: `input_ids` and `attention_mask` in, `embedding` out.
        calibration: Token ids of sentences of news, for passes and tools that calibrate.
        test: Token ids of sentences of other news.
    """

    path: Path
    calibration: Sequence[Sequence[int]]
    test: Sequence[Sequence[int]]

    @cached_property
    def reference(self) -> Array:
        """Embeddings of the test sentences, one at a time, f32[N, 384]."""
        return embeddings(self.path, self.test)

    def calibration_feeds(self, count: int = _NUM_CALIBRATION) -> list[Feed]:
        """Returns the first sentences as inputs of the model, one each."""
        return [feed([ids]) for ids in self.calibration[:count]]


def encoder() -> Encoder:
    """Returns the encoder; the first time it is captured from PyTorch, which takes a minute."""
    path, texts = FOLDER / "encoder.onnx", FOLDER / "texts.json"
    if not path.exists() or not texts.exists():
        _prepare(path, texts)
    found = json.loads(texts.read_text())
    return Encoder(path, found["calibration"], found["test"])


def _prepare(path: Path, texts: Path) -> None:
    from tokenizers import Tokenizer  # an extra

    import regraft
    from benchmarks import encoder as source  # needs PyTorch

    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(find(SENTENCE_ENCODER).parent / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    news, test = (_sentences(find(file)) for file in (source.NEWS, source.TEST_TEXT))
    chosen = np.random.default_rng(0).permutation(len(news))[: 4 * _NUM_CALIBRATION]
    parts = {"calibration": [news[idx] for idx in chosen], "test": test}
    ids = {name: [tokenizer.encode(text).ids for text in part] for name, part in parts.items()}
    module = source.encoder()
    regraft.apply(module, "legalize{target=onnx}", check="off")
    regraft.save(module, path, target="onnx")  # standard operators, as people export it
    texts.write_text(json.dumps(ids))


def _sentences(file: Path) -> list[str]:
    text = file.read_text(encoding="latin-1").replace("\n", " ")
    parts = (part.strip() for part in re.split(r"(?<=[.!?])\s+", text))
    return [part for part in parts if len(part) in _LENGTHS]


def feed(rows: Sequence[Sequence[int]]) -> Feed:
    """Returns token ids as a batch, filled up to the longest."""
    longest = max(map(len, rows))
    ids = np.array([[*row, *[0] * (longest - len(row))] for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def shaped(batch: int, length: int) -> Feed:
    """Returns random tokens for timing."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def session(path: Path) -> ort.InferenceSession:
    """Returns a session on one thread with default options otherwise."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def embeddings(path: Path, sentences: Sequence[Sequence[int]], batch: int = 1) -> Array:
    """Returns the embeddings of whole batches of sentences, f32[N, 384]."""
    runner = session(path)
    parts = list(_batches(sentences, batch))
    return np.concatenate([runner.run(["embedding"], feed(part))[0] for part in parts])


def _batches(sentences: Sequence[Sequence[int]], batch: int) -> Iterator[Sequence[Sequence[int]]]:
    for first in range(0, len(sentences) // batch * batch, batch):
        yield sentences[first : first + batch]


def cosines(a: Array, b: Array) -> Array:
    """Returns the cosine of each pair of rows, f64[N]."""
    wide = [np.asarray(each, np.float64) for each in (a, b)]
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in wide]
    found: Array = np.einsum("nd,nd->n", *units)
    return found


def invariance(path: Path, test: Sequence[Sequence[int]]) -> float:
    """Returns the least cosine between a sentence alone and the same among `BATCH`."""
    together = embeddings(path, test, BATCH)
    alone = embeddings(path, test[: len(together)])
    return float(cosines(alone, together).min())
