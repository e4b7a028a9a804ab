"""The pass `vq-head`: the rows of an output matrix become few code vectors, logits are gathered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, gathering, linalg
from regraft.ir.weights import ArrayWeight
from regraft.passes.calibration.statistics import Statistics, gather_statistics
from regraft.passes.protocol import Context, Contract, LayerError, Lossy, PassResult
from regraft.passes.quantization.sites import Linear, linears

Array = np.ndarray[Any, Any]

_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class VqHead:
    """Replaces the output matrix of a language model by a codebook and a map of tokens.

    ## What it does
    Clusters the columns of the last linear layer, one per token, into `codes` vectors, and computes
    one score per vector; every token takes the score of its vector. The layer does `codes / V` of
    the work and holds as much less.

    Tokens of one vector would get equal scores, and the largest would be whichever comes first.
    `ties=bias` adds to each token what the difference from its vector gives for the mean input of
    the samples: an order among them that holds on average. `ties=refuse` fails where tokens share
    a vector.

    ## When it applies
    To the linear layer that makes an output of the graph, the widest one.

    ## Example
    ```
    %logits = matmul(%h, %head)             // f32[D, V]
    ```
    becomes
    ```
    %scores = matmul(%h, %codes)            // f32[D, K]
    %logits = add(gather(%scores, %map), %ties)
    ```

    ## Exactness
    Lossy; exact with as many codes as tokens. Training after it is what makes it good.

    ## References
    VQ-Logits, 2025.

    Args:
        codes: Vectors of the codebook.
        ties: `bias` or `refuse`.
    """

    name: ClassVar[str] = "vq-head"
    contract: ClassVar[Contract] = Lossy("output")

    codes: int = 1024
    ties: Literal["bias", "refuse"] = "bias"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Clusters and rewrites.

        Raises:
            UsageError: Without such a layer, for no codes, or where tokens would be tied.
        """
        if self.codes < 1:
            raise UsageError(f"pass `vq-head`, option `codes`: {self.codes} is not above 0")
        site = _head(module)
        matrix = site.matrix()
        count = min(self.codes, matrix.shape[1])
        rng = np.random.default_rng(ctx.seed)
        book, place = clustered_columns(matrix, count, rng)
        tied = matrix.shape[1] - len(np.unique(place))
        if tied and self.ties == "refuse":
            raise UsageError(
                f"pass `vq-head`: {tied} of {matrix.shape[1]} tokens would have the scores of "
                "others, and the largest would be whichever comes first",
                hint="`ties=bias` orders them, or train the codebook first",
            )
        stats = _statistics(module, site, ctx)
        rest = matrix - book[:, place]
        order = np.zeros(matrix.shape[1]) if stats is None else stats.mean @ rest
        error = _error(matrix, book[:, place], order, stats)
        last, bias = site.with_bias()
        b = Builder(module.graph, last, site.node.loc)
        codes = b.weight(f"{site.name}.codebook", ArrayWeight(book, (site.name,)))
        scores = b.op(linalg.matmul, site.x, codes)
        logits = b.op(gathering.gather, scores, b.constant(place.astype(np.int64)), axis=-1)
        if order.any():
            logits = b.op(arithmetic.add, logits, b.constant(order.astype(np.float32)))
        if bias is not None:
            logits = b.op(arithmetic.add, logits, bias)
        module.graph.replace(last, [logits])
        layer = LayerError(
            site.name, f"vq{count}", error, stats is not None,
            4 * book.size + 4 * matrix.shape[1], 4 * matrix.size,
        )  # fmt: skip
        return PassResult(True, {"codes": count, "tied-tokens": tied}, layers=(layer,))


def _head(module: Module) -> Linear:
    outputs = set(module.graph.outputs)
    found = [site for site in linears(module.graph) if site.with_bias()[0].output in outputs]
    if not found:
        raise UsageError("pass `vq-head`: no linear layer makes an output of the graph")
    return max(found, key=lambda site: site.sizes[1])


def _statistics(module: Module, site: Linear, ctx: Context) -> Statistics | None:
    if not ctx.samples or ctx.activations is None or not isinstance(site.node, Node):
        return None
    return gather_statistics(module, [site.x], ctx)[site.x]


def _error(matrix: Array, held: Array, order: Array, stats: Statistics | None) -> float:
    if stats is None:
        return float(np.linalg.norm(held - matrix)) / max(float(np.linalg.norm(matrix)), 1e-30)
    rows = stats.sample()
    exact = rows @ matrix
    off = float(np.linalg.norm(rows @ held + order - exact))
    return off / max(float(np.linalg.norm(exact)), 1e-30)


def clustered_columns(matrix: Array, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Returns a codebook f32[D, count] and the code of every column, i64[V]: k-means.

    Args:
        matrix: f32[D, V].
        count: Codes, at most V; with V of them the codebook is the matrix.
        rng: Draws where to begin.
    """
    columns = matrix.T.astype(np.float32)
    if count >= len(columns):
        return matrix.astype(np.float32), np.arange(len(columns))
    book = columns[rng.choice(len(columns), count, replace=False)].copy()
    place = np.zeros(len(columns), np.int64)
    for _ in range(_ROUNDS):
        distance = np.square(book).sum(1)[None] - 2 * columns @ book.T
        moved = distance.argmin(1)
        if (moved == place).all():
            break
        place = moved
        sizes = np.bincount(place, minlength=count)
        sums = np.zeros_like(book)
        np.add.at(sums, place, columns)
        used = sizes > 0
        book[used] = sums[used] / sizes[used, None]
        # a code of no column takes the column that is farthest from its own
        for idx in np.flatnonzero(~used):
            own = np.square(columns - book[place]).sum(1)
            far = int(own.argmax())
            book[idx], place[far] = columns[far], idx
    return np.ascontiguousarray(book.T), place
