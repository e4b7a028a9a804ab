"""Latency of pruned networks on ONNX Runtime, interleaved with the dense ones; as a target, too."""

from collections.abc import Callable, Iterator

from benchmarks.measure import Measurement, Row, Settings, at_most, held
from benchmarks.prune_models import encoder, residual_network
from regraft.benching import OrtLatency, bench
from regraft.ir.errors import TargetError
from regraft.ir.module import Module
from regraft.passes.protocol import Context
from regraft.passes.pruning import Prune
from regraft.sources import open_source

ROUNDS = 50
BAR = 1.6
NETWORKS: dict[str, tuple[Callable[[], Module], dict[str, int]]] = {
    "ResNet-50-like": (residual_network, {"B": 1}),
    "BERT-base-like": (encoder, {"B": 1, "S": 128}),
}
FITTED: dict[str, tuple[Callable[[], Module], dict[str, int]]] = {
    "ResNet-50-like": (residual_network, {"B": 1}),
    "encoder of 6 x 384": (lambda: encoder(6, 384, 1000), {"B": 1, "S": 128}),
}
WANTED = (0.7, 0.5)
LATENCY_PERCENT = 5.0


def speed(settings: Settings) -> Iterator[Row]:
    """Yields the speedup at half of the FLOPs; two is what the FLOPs allow."""
    for name, (make, dims) in NETWORKS.items():
        dense = make()
        pruned = dense.clone()
        result = Prune("flops:0.5", round_to=8).run(pruned, Context(dims=dims))
        sources = [open_source(dense), open_source(pruned)]
        measured = bench(sources, dims=dims, rounds=ROUNDS)
        first, second = measured.runs
        ratio = second.ratio
        yield Row(
            f"{name}: speedup at half of the FLOPs, one thread", 1 / ratio.median, "x", BAR,
            "at least",
            f"{1e3 * sorted(first.seconds)[ROUNDS // 2]:.1f} ms to "
            f"{1e3 * sorted(second.seconds)[ROUNDS // 2]:.1f} ms, FLOPs "
            f"{result.stats['achieved']}, {ratio}",
            1 / ratio.low,
        )  # fmt: skip


def fitted(settings: Settings) -> Iterator[Row]:
    """Yields how far a latency that was asked for is from what is measured again afterwards."""
    for name, (make, dims) in FITTED.items():
        dense = make()
        for wanted in WANTED:
            pruned, what = dense.clone(), f"{name}: latency:{wanted}"
            try:
                result = Prune(f"latency:{wanted}", round_to=8).run(
                    pruned, Context(dims=dims, latency=OrtLatency(dims=dims))
                )
            except TargetError as error:
                yield held(f"{what}: met", holds=False, note=error.message)
                continue
            sources = [open_source(dense), open_source(pruned)]
            ratio = bench(sources, dims=dims, rounds=ROUNDS).runs[1].ratio
            yield at_most(
                f"{what}: error", 100 * abs(ratio.median / wanted - 1), LATENCY_PERCENT, "%",
                f"{ratio} measured again, {result.stats['latency']} in the search, "
                f"FLOPs {result.stats['achieved']}",
            )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("prune-speed", "speedup of pruned networks on ONNX Runtime", speed),
    Measurement("prune-latency", "how near a measured latency comes to the target", fitted),
)
