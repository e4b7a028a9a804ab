"""The pass `replace-mixer`: pooling in place of attention and of depthwise convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, conv, linalg, pool, reshaping, slicing
from regraft.ir.rewrite import Rewriter, rewrite
from regraft.passes.analysis.attention_blocks import AttentionBlock
from regraft.passes.analysis.blocks import graphs_of, recognize
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

_MAX_STEPS = 3


@dataclass(frozen=True, slots=True)
class ReplaceMixer:
    """Mixes tokens by pooling instead of by attention, or by convolution.

    ## What it does
    `avgpool`: every self-attention, from what its projections read to the result of its output
    projection, becomes the mean over 3 x 3 neighbours less the token itself. Tokens lie in a
    square; what is left over at the front (class tokens) is mixed with nothing. `maxpool`: every
    depthwise convolution becomes the maximum over its window. Weights that nothing reads any more
    are removed.

    ## When it applies
    `avgpool` to self-attention without masks over a fixed number of tokens, whose projections read
    one value `[B, N, C]`. `maxpool` to depthwise convolutions without dilation.

    ## Example
    ```
    %y = conv(%x, %w) {kernel 3 x 3, groups = C}
    ```
    with `replace-mixer{kind=maxpool}` becomes
    ```
    %y = max_pool(%x) {kernel = [3, 3]}
    ```

    ## Exactness
    Lossy, to be trained.

    ## References
    Yu et al., MetaFormer Is Actually What You Need for Vision, 2022 (avgpool); Han et al., Learning
    Features with Parameter-Free Layers, 2022 (maxpool).

    Args:
        kind: What mixes.
        layers: Numbers of the attention layers or convolutions, from 0; all when empty.
    """

    name: ClassVar[str] = "replace-mixer"
    contract: ClassVar[Contract] = Lossy("output")

    kind: Literal["avgpool", "maxpool"]
    layers: tuple[int, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Replaces every place."""
        plan, skipped = Plan(), []
        for number, (name, node, build) in enumerate(self._places(module)):
            if self.layers and number not in self.layers:
                continue
            if isinstance(build, str) or node is None:
                skipped.append(Skip(name, f"mixer: {build}"))
            else:
                plan.add(node, f"replace-mixer-{self.kind}", build)
        rewrite(module, plan.rules(), start=plan.in_order(), observer=ctx.observer)
        removed = drop_dead_code(module)
        stats = {"replaced": len(plan.places), "removed": removed}
        return PassResult(bool(plan.places), stats, tuple(skipped))

    def _places(self, module: Module) -> list[tuple[str, Node | None, Raise | str]]:
        if self.kind == "maxpool":
            return [
                (str(node.output.name), node, _max_pool_of(node))
                for graph in graphs_of(module.graph)
                for node in graph
                if node.op is conv.conv and node.attrs["groups"] > 1
            ]
        places: list[tuple[str, Node | None, Raise | str]] = []
        for block in recognize(module).attention:
            end = _end(block)
            made = _pooling_of(block, end)
            places.append((str(block.output.name), end, made))
        return places


def _max_pool_of(node: Node) -> Raise | str:
    x, weight = node.inputs[:2]
    if x is None or weight is None or x.shape is None or weight.shape is None:
        return "its sizes are not known"
    if not node.attrs["groups"] == x.shape[1] == weight.shape[0]:
        return "it mixes channels: only a depthwise convolution has a pooling of its form"
    kernel = weight.shape[2:]
    if any(step != 1 for step in node.attrs["dilations"]):
        return "it is dilated"

    def apply(node: Node, rw: Rewriter) -> None:
        names = ("strides", "dilations", "pads", "auto_pad")
        window = {name: node.attrs[name] for name in names}
        rw.replace(node, rw.builder(node).op(pool.max_pool, x, kernel=kernel, **window))

    return apply


def _end(block: AttentionBlock) -> Node | None:
    """Returns the last node of an attention layer: its output projection, with the bias."""
    out = block.projections.get("out")
    node = None if out is None else out.node
    for _ in range(_MAX_STEPS):
        users = [] if node is None else node.outputs[0].users
        if node is None or len(users) != 1 or node.op not in (linalg.matmul, linalg.gemm):
            return node
        user = users[0]
        other = [v for v in user.inputs if v is not None and v is not node.outputs[0]]
        is_bias = user.op is arithmetic.add and len(other) == 1 and other[0].rank == 1
        if is_bias:
            return user
        return node
    return node


def _pooling_of(block: AttentionBlock, end: Node | None) -> Raise | str:
    if block.kind != "self" or block.masks:
        return "it is not self-attention over all tokens"
    sources = {id(p.source): p.source for name, p in block.projections.items() if name != "out"}
    if len(sources) != 1 or end is None:
        return "its projections do not read one value"
    (x,) = sources.values()
    if x.shape is None or len(x.shape) != 3 or not isinstance(x.shape[1], int):
        return "its tokens are not [batch, a fixed number, channels]"
    if end.outputs[0].shape != x.shape:
        return "its result has another type than what it reads"
    tokens = x.shape[1]
    side = math.isqrt(tokens)

    def apply(node: Node, rw: Rewriter) -> None:
        rw.replace(node, _pooled(rw.builder(node), x, side, tokens - side * side))

    return apply


def _pooled(b: Builder, x: Value, side: int, prefix: int) -> Value:
    B, N, C = x.shape or ()
    grid, kept = x, None
    if prefix:
        kept, grid = (_part(b, x, start, end) for start, end in ((0, prefix), (prefix, N)))
    lined = b.op(reshaping.transpose, grid, perm=(0, 2, 1))
    image = b.op(reshaping.reshape, lined, shape=(B, C, side, side))
    mean = b.op(
        pool.average_pool, image, kernel=(3, 3), strides=(1, 1), dilations=(1, 1),
        pads=(1, 1, 1, 1), count_include_pad=False,
    )  # fmt: skip
    mixed = b.op(arithmetic.sub, mean, image)
    back = b.op(reshaping.reshape, mixed, shape=(B, C, side * side))
    back = b.op(reshaping.transpose, back, perm=(0, 2, 1))
    if kept is None:
        return back
    nothing = b.op(arithmetic.sub, kept, kept)
    return b.op(slicing.concat, nothing, back, axis=1)


def _part(b: Builder, x: Value, start: int, end: DimLike) -> Value:
    return b.op(slicing.slice_, x, starts=(start,), ends=(end,), axes=(1,), steps=(1,))
