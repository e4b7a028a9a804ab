"""Convolutions in 8 bits: a dense CNN, MobileNetV2 on photos, text recognition, voice detection.

What they decide must stay as it was: `quantize` leaves in float what would change it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from benchmarks import models
from benchmarks.measure import Measurement, Row, Settings, at_least, at_most, held, shown
from benchmarks.quant_encoder_data import FOLDER, session
from benchmarks.timing import interleaved, ratio
from regraft.backends.onnx.activations import OrtActivations
from regraft.benching import OrtLatency
from regraft.passes.protocol import Context, PassResult
from regraft.passes.quantization import Quantize

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

_CROPS = 512
_AGREEMENT = 0.99
_ROUNDS_OF_ALL = 3
_MIN_TURN_S = 0.05
_CHUNKS = 400
"""Of 32 ms: every second of speech is followed by one of noise."""
_VAD_RATE_HZ, _VAD_CHUNK, _VAD_CONTEXT = 16000, 512, 64


@dataclass(frozen=True, slots=True)
class Converted:
    """A model before and after `quantize`.

    Args:
        before: File of the float model.
        after: File of the quantized one.
        result: What the pass says.
    """

    before: Path
    after: Path
    result: PassResult

    def outputs(self, feeds: Sequence[Feed]) -> tuple[list[Array], list[Array]]:
        """Returns the first output of both on every feed."""
        both = [session(path) for path in (self.before, self.after)]
        before, after = ([each.run(None, feed)[0] for feed in feeds] for each in both)
        return before, after

    def speed(self, settings: Settings, name: str, feed: Feed, bar: float | None) -> Row:
        """Returns how many times as fast the quantized one is, on one thread."""
        calls = [partial(session(path).run, None, feed) for path in (self.before, self.after)]
        found = ratio(*interleaved(
            calls, settings.rounds, min_turn_s=_MIN_TURN_S, clock=time.thread_time
        ))  # fmt: skip
        if bar is None:
            return shown(name, found.median, "x", str(found))
        return Row(name, found.median, "x", bar, "at least", str(found), found.high)

    @property
    def share(self) -> float:
        """Share of the products of convolutions in 8 bits, in percent."""
        return 100 * float(self.result.stats.get("share-of-convolutions", 0.0))


def converted(before: Path, name: str, options: Quantize, feeds: Sequence[Feed]) -> Converted:
    """Quantizes a file."""
    module = regraft.load(before)
    regraft.apply(module, "canonicalize,fuse", check="off")
    ctx = Context(samples=feeds, activations=OrtActivations(), latency=OrtLatency())
    result = options.run(module, ctx)
    FOLDER.mkdir(parents=True, exist_ok=True)
    after = FOLDER / f"{name}.onnx"
    after.unlink(missing_ok=True)
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    regraft.save(module, after, target="ort-cpu")
    return Converted(before, after, result)


def _input(path: Path) -> str:
    return str(session(path).get_inputs()[0].name)


def _dense(settings: Settings) -> Iterator[Row]:
    from benchmarks.quant_conv_models import dense  # needs PyTorch
    from benchmarks.small_models import digits

    digits.fetch()
    model = dense()
    module = model.module()
    regraft.apply(module, "canonicalize,fuse", check="off")
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "dense.onnx"
    path.unlink(missing_ok=True)
    regraft.save(module, path, target="ort-cpu")
    images = digits.training_batch(1, 0, 512)["pixel_values"]
    feeds = [{"pixel_values": images[i : i + 16]} for i in range(0, len(images), 16)]
    found = converted(path, "dense-int8", Quantize(), feeds)
    batches = list(model.held_out())
    labels = np.concatenate([batch["labels"] for batch in batches])
    tests = [{"pixel_values": batch["pixel_values"]} for batch in batches]
    right = [100 * float((np.concatenate(each).argmax(-1) == labels).mean())
             for each in found.outputs(tests)]  # fmt: skip
    yield at_least("dense CNN: products of convolutions in 8 bits", found.share, 90.0, "%")
    yield at_most("dense CNN: accuracy lost", right[0] - right[1], 0.5, "points",
                  f"{right[0]:.2f} % in float, {len(labels)} held-out digits")  # fmt: skip
    for size in (1, 16):
        feed = {"pixel_values": images[:size]}
        yield found.speed(settings, f"dense CNN: speed against fp32, batch {size}", feed, 2.0)


def _mobilenet(settings: Settings) -> Iterator[Row]:
    """Int8 wherever it is faster, and the float network where that is unsure of the class."""
    from benchmarks.quant_conv_models import mobilenet, photos  # needs PyTorch the first time

    path, crops = mobilenet(), photos(_CROPS)
    name = _input(path)
    module = regraft.load(path)
    records = regraft.apply(
        module, f"canonicalize,fuse,quantize{{budget=1}},cascade{{agreement={_AGREEMENT}}}",
        samples=[{name: crop} for crop in crops.calibration], check="off",
    )  # fmt: skip
    of = {record.name: record for record in records}
    FOLDER.mkdir(parents=True, exist_ok=True)
    after = FOLDER / "mobilenet-cascade.onnx"
    after.unlink(missing_ok=True)
    regraft.apply(module, "legalize{target=ort-cpu}", check="off")
    regraft.save(module, after, target="ort-cpu")
    found = Converted(path, after, PassResult(True, of["quantize"].stats))
    tests = [{name: crop} for crop in crops.test]
    old, new = found.outputs(tests)
    same = sum(bool(a.argmax() == b.argmax()) for a, b in zip(old, new, strict=True))
    low, high = _interval(same, len(tests))
    what = "MobileNetV2, int8 and a fallback"
    yield at_least(
        f"{what}: same class as fp32", 100 * same / len(tests), 100 * _AGREEMENT, "%",
        f"{len(tests)} crops of photos not calibrated on; 95 % interval {low:.1f} to {high:.1f}",
    )  # fmt: skip
    pointwise = 100 * float(of["quantize"].stats["share-of-1x1-convolutions"])
    yield shown(f"{what}: products of 1x1 convolutions in 8 bits", pointwise, "%",
                "where the fast network answers")  # fmt: skip
    yield shown(f"{what}: products of convolutions in 8 bits", found.share, "%")
    exact = [bool((a == b).all()) for a, b in zip(old, new, strict=True)]
    back = 100 * float(of["cascade"].stats["fallback-share"])
    yield shown(f"{what}: crops that fall back", 100 * sum(exact) / len(tests), "%",
                f"{back:.1f} % of the held-back calibration crops")  # fmt: skip
    yield shown(f"{what}: same class without the fallback",
                100 * float(of["cascade"].stats["agreement-without"]), "%",
                "on held-back calibration crops")  # fmt: skip
    yield _over_all(found, settings, f"{what}: speed against fp32, all crops", tests)
    yield shown(f"{what}: file", after.stat().st_size / 1e6, "MB",
                f"{path.stat().st_size / 1e6:.1f} MB in float")  # fmt: skip


def _over_all(found: Converted, settings: Settings, name: str, feeds: Sequence[Feed]) -> Row:
    """Returns how many times as fast all inputs together are answered, one by one."""

    def every(run: Callable[..., Any]) -> None:
        for feed in feeds:
            run(None, feed)

    calls = [partial(every, session(path).run) for path in (found.before, found.after)]
    rounds = min(settings.rounds, _ROUNDS_OF_ALL)
    speed = ratio(*interleaved(calls, rounds, min_turn_s=_MIN_TURN_S, clock=time.thread_time))
    return Row(name, speed.median, "x", 1.0, "at least", str(speed), speed.high)


def _interval(successes: int, count: int) -> tuple[float, float]:
    """Returns the Wilson interval of 95 % of a share, in percent."""
    z, share = 1.96, successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return 100 * float(middle - half), 100 * float(middle + half)


def _mobilenet_default(settings: Settings) -> Iterator[Row]:
    """What the pass takes by itself, without a fallback."""
    from benchmarks.quant_conv_models import mobilenet, photos  # needs PyTorch the first time

    path, crops = mobilenet(), photos(_CROPS)
    name = _input(path)
    found = converted(
        path, "mobilenet-default", Quantize(), [{name: crop} for crop in crops.calibration]
    )
    tests = [{name: crop} for crop in crops.test]
    old, new = found.outputs(tests)
    same = 100 * float(np.mean([a.argmax() == b.argmax() for a, b in zip(old, new, strict=True)]))
    what = "MobileNetV2, default"
    yield at_least(f"{what}: same class as fp32", same, 99.0, "%")
    pointwise = 100 * float(found.result.stats["share-of-1x1-convolutions"])
    yield shown(f"{what}: products of 1x1 convolutions in 8 bits", pointwise, "%")
    yield found.speed(settings, f"{what}: speed against fp32", tests[0], 1.0)


def _text(settings: Settings) -> Iterator[Row]:
    from benchmarks.quant_conv_models import read, text_lines

    path = models.find(models.named("ppocr-rec"))
    meta = session(path).get_modelmeta().custom_metadata_map
    characters = ["", *meta["character"].split("\n"), " "]
    name, lines = _input(path), text_lines()
    feeds = [{name: line} for line in lines]
    found = converted(path, "text-int8", Quantize(), feeds[::2])
    before, after = ([read(each[0], characters) for each in outputs]
                     for outputs in found.outputs(feeds))  # fmt: skip
    changed = [f"`{a}` -> `{b}`" for a, b in zip(before, after, strict=True) if a != b]
    yield held("text recognition: lines read as before", not changed,
               "; ".join(changed) or f"{len(lines)} lines, such as `{before[1]}`")  # fmt: skip
    yield shown("text recognition: products of convolutions in 8 bits", found.share, "%")
    yield found.speed(settings, "text recognition: speed against fp32", feeds[1], 1.0)


def _chunks(seed: int) -> Array:
    """Returns f32[chunks, 576]: speech and noise in turns of a second, each with its context."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(_CHUNKS * _VAD_CHUNK // (2 * _VAD_RATE_HZ)):
        parts.append(models.speech(rng, 1, _VAD_RATE_HZ, _VAD_RATE_HZ)[0])
        parts.append(rng.normal(0, 0.01, _VAD_RATE_HZ).astype(np.float32))
    sound = np.concatenate([np.zeros(_VAD_CONTEXT, np.float32), *parts])
    starts = range(0, len(sound) - _VAD_CHUNK - _VAD_CONTEXT + 1, _VAD_CHUNK)
    return np.stack([sound[i : i + _VAD_CHUNK + _VAD_CONTEXT] for i in starts])


def _run_vad(run: Callable[[Feed], Sequence[Array]], chunks: Array) -> tuple[Array, list[Feed]]:
    """Returns the probability of every chunk, state handed on, and what was fed."""
    state = np.zeros((2, 1, 128), np.float32)
    found, feeds = [], []
    for chunk in chunks:
        feed = {"input": chunk[None], "state": state, "sr": np.array(_VAD_RATE_HZ, np.int64)}
        feeds.append(feed)
        probability, state = run(feed)
        found.append(float(probability[0, 0]))
    return np.array(found), feeds


def _voice(settings: Settings) -> Iterator[Row]:
    path = models.find(models.named("silero_vad_16k_op15"))
    _, feeds = _run_vad(partial(session(path).run, None), _chunks(0))
    found = converted(path, "vad-int8", Quantize(), feeds[:: len(feeds) // 64])
    chunks = _chunks(1)
    before, after = (_run_vad(partial(session(file).run, None), chunks)[0]
                     for file in (found.before, found.after))  # fmt: skip
    changed = int(((before > 0.5) != (after > 0.5)).sum())
    spoken = int((before > 0.5).sum())
    yield at_most("voice detection: decisions that change", changed, 0, "chunks",
                  f"of {len(chunks)}, {spoken} of them speech; synthetic speech")  # fmt: skip
    apart = float(np.abs(before - after).max())
    yield shown("voice detection: largest change of a probability", apart, "")
    yield shown("voice detection: products of convolutions in 8 bits", found.share, "%")
    yield found.speed(settings, "voice detection: speed against fp32", feeds[0], 1.0)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("dense-cnn", "a CNN of digits, trained here, in 8 bits", _dense),
    Measurement("mobilenet", "MobileNetV2 in 8 bits with a fallback, on photos", _mobilenet),
    Measurement(
        "mobilenet-default", "MobileNetV2 by the defaults of `quantize`", _mobilenet_default
    ),
    Measurement("text", "text recognition in 8 bits reads the same", _text),
    Measurement("voice", "voice detection in 8 bits decides the same", _voice),
)
