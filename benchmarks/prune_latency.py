"""Latency of pruned networks on ONNX Runtime, interleaved with the dense ones."""

from collections.abc import Callable, Iterator

from benchmarks.measure import Measurement, Row, Settings
from benchmarks.prune_models import encoder, residual_network
from regraft.benching import bench
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


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("prune-speed", "speedup of pruned networks on ONNX Runtime", speed),
)
