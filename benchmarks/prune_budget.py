"""How near a budget is met, and how long planning and rewriting takes."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import onnx

from benchmarks.measure import Measurement, Row, Settings, at_most, held, shown
from benchmarks.prune_models import encoder, residual_network, vision_transformer
from regraft.backends.onnx import to_proto
from regraft.ir.errors import TargetError
from regraft.ir.module import Module
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune

NETWORKS: dict[str, Callable[[], Module]] = {
    "ResNet-50-like": residual_network,
    "BERT-base-like": encoder,
    "ViT-B-like": vision_transformer,
}
TARGETS = ("flops:0.5", "params:0.7")
LIMIT_S = 5.0
SHALLOW, DEEP = 12, 96
MAX_GROWTH = 1.5
"""Time per layer of the deep stack over that of the shallow one: linear, but for caches."""

OUT_OF_REACH = (
    "target=flops:0.001", "target=params:0.3,min-keep=0.8", "target=flops:0.98,round-to=128",
    "target=latency:0.01",
)  # fmt: skip
OUT_OF_REACH_CODE = 4


def budget(settings: Settings) -> Iterator[Row]:
    """Yields the error of every budget, free widths and multiples of 8."""
    for name, make in NETWORKS.items():
        module = make()
        for target in TARGETS:
            for round_to, limit in ((1, 1.0), (8, 2.0)):
                what = f"{name}: {target}" + (", multiples of 8" if round_to > 1 else "")
                try:
                    result = Prune(target, round_to=round_to).run(module.clone(), Context())
                except TargetError as error:
                    yield held(f"{what}: met", holds=False, note=error.message)
                    continue
                wanted = float(target.partition(":")[2])
                error_percent = 100 * abs(float(result.stats["achieved"]) / wanted - 1)
                note = f"least kept {result.stats['least-kept']}"
                yield at_most(f"{what}: error", error_percent, limit, "%", note)


def planning(settings: Settings) -> Iterator[Row]:
    """Yields seconds of coupling, scores, plan and rewrite."""
    for name, make in NETWORKS.items():
        module = make()
        yield at_most(f"{name}: plan and rewrite", _seconds(module), LIMIT_S, "s")
    per_layer = {}
    for layers in (SHALLOW, DEEP):
        seconds = min(_seconds(encoder(layers, 128, 100)) for _ in range(3))
        per_layer[layers] = seconds / layers
        yield shown(f"{layers} layers of 128: plan and rewrite", seconds, "s")
    growth = per_layer[DEEP] / per_layer[SHALLOW]
    yield at_most(f"per layer, {DEEP} over {SHALLOW} layers", growth, MAX_GROWTH, "x")


def _seconds(module: Module) -> float:
    copy = module.clone()
    start = time.perf_counter()
    Prune("flops:0.5", round_to=8).run(copy, Context())
    return time.perf_counter() - start


def refusals(settings: Settings) -> Iterator[Row]:
    """Yields that targets out of reach end the command with exit code 4 and nothing written."""
    path, out = settings.work / "prune-refused.onnx", settings.work / "prune-refused"
    onnx.save(to_proto(encoder(2, 128, 100), profile="ort-cpu"), path)
    for options in OUT_OF_REACH:
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run(
            [
                settings.python, "-m", "regraft", "convert", str(path), "-o", str(out),
                "--passes", f"prune{{{options}}}",
            ],
            capture_output=True, text=True, check=False, timeout=settings.timeout_s,
        )  # fmt: skip
        said = next((line for line in done.stderr.splitlines() if "is nearest" in line), "")
        yield held(
            f"prune{{{options}}}: exit code {OUT_OF_REACH_CODE}, the nearest is named",
            done.returncode == OUT_OF_REACH_CODE and bool(said) and not out.exists(),
            f"exit code {done.returncode}; {said[:120]}",
        )


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("prune-budget", "how near FLOPs and parameters come to the target", budget),
    Measurement("prune-refusals", "what targets out of reach end with", refusals),
    Measurement("prune-planning", "time of plan and rewrite, and how it grows", planning),
)
