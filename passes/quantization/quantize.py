"""The pass `quantize`: weights, and where asked the inputs of linear layers, as small integers."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.errors import UsageError
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.passes.cleanup.canonicalize import Canonicalize
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip
from regraft.passes.quantization.encoding import Encoded, grid_of, round_to
from regraft.passes.quantization.formats import INT8, Format, format_of
from regraft.passes.quantization.methods import Method, encode
from regraft.passes.quantization.ranges import (
    Range,
    rounded,
    searched_range,
    smoothing,
    tail_channels,
)
from regraft.passes.quantization.rewrite import (
    Input,
    dequantized,
    dynamic_input,
    static_input,
    token_input,
    write_linear,
    write_table,
)
from regraft.passes.quantization.sites import Linear, linears, tables
from regraft.passes.quantization.statistics import Statistics, gather_statistics

Array = np.ndarray[Any, Any]

_GROUP_BELOW_8_BITS = 32

_TAIL = 8
"""Channels in float beside ranges per row: on a sentence encoder the error falls by half with 8."""

_SMOOTH = 0.65
"""On a sentence encoder the best of 0.3 to 0.8 in steps of a twentieth without a tail."""


@dataclass(frozen=True, slots=True)
class Quantize:
    """Stores weights as small integers, and rounds the inputs of linear layers to 8 bits.

    ## What it does
    The weight of every linear layer becomes integer codes with a scale per output, or per group of
    inputs below 8 bits. With 8-bit weights the input is rounded too, so that the product runs in
    integers: in one range found on samples (`static`), in a range per row (`token`), or in a range
    that each run finds (`dynamic`). A few channels whose numbers are far larger than the others'
    stay in float beside it (`tail`), and large channels can be scaled down before rounding
    (`smooth`). What rounding shifts on average is added to the bias.

    ## When it applies
    To products with a constant matrix, and to tables that are read by index. `static` and `gptq`
    need samples.

    ## Example
    ```
    %y = matmul(%x, %w)                     // f32[B, 384] by f32[384, 1536]
    ```
    becomes
    ```
    %q = quantize(%x, 0.031, 121)           // u8
    %d = dequantize(%q, 0.031, 121)
    %v = dequantize(%w.codes, %w.scales) {axis = 1}
    %y = matmul(%d, %v)
    ```

    ## Exactness
    Lossy. `static` and `token` are batch-invariant: a row's result does not depend on which rows
    it is run with. `dynamic` is not.

    ## References
    Frantar et al., GPTQ, 2022; Xiao et al., SmoothQuant, 2023.

    Args:
        weights: Format of weights: `int8`, `int7` (8 bits for CPUs without VNNI), `int4`, `uint4`,
            `int2`, `uint2`.
        activations: How inputs are rounded; `auto` is `token` for 8-bit weights, which is
            accurate, else `none`. `static` is faster, and what samples did not show saturates.
        method: How codes are found: `round`, `search` of ranges, `gptq`; `auto` is `gptq`
            below 8 bits where there are samples.
        group: Inputs that share a scale; 0 means all for 8 bits, 32 below.
        tail: Channels of every input that stay in float; `none` is 8 for `token`, where samples
            can be run, and 0 for `static`.
        smooth: Strength, 0 to 1, of scaling large channels down before a `static` range; `none` is
            0.65.
        embeddings: Format of tables read by index: `int8`, or `none`.
        keep: Weights that stay in float, as names or globs.
    """

    name: ClassVar[str] = "quantize"
    contract: ClassVar[Contract] = Lossy("output")

    weights: str = "int8"
    activations: Literal["auto", "static", "token", "dynamic", "none"] = "auto"
    method: Literal["auto", "round", "search", "gptq"] = "auto"
    group: int = 0
    tail: int | None = None
    smooth: float | None = None
    embeddings: Literal["int8", "none"] = "int8"
    keep: tuple[str, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Calibrates, encodes, rewrites.

        Raises:
            UsageError: For options that do not go together, or without the samples they need.
        """
        fmt = format_of(self.weights, "weights")
        mode = self._mode(fmt)
        method = self._method(fmt, ctx)
        sites = [site for site in linears(module.graph) if not self._kept(site.name)]
        inputs = list(dict.fromkeys(site.x for site in sites))
        found: Mapping[Value, Statistics] = {}
        if inputs and (mode == "static" or method == "gptq" or (ctx.samples and ctx.activations)):
            found = gather_statistics(module, inputs, ctx, inputs if method == "gptq" else ())
        skipped = [Skip(site.name, "kept by option") for site in linears(module.graph)
                   if self._kept(site.name)]  # fmt: skip
        run = _Run(self, fmt, mode, method, found, errors={})
        by_input: dict[Value, list[Linear]] = {}
        for site in sites:
            by_input.setdefault(site.x, []).append(site)
        for x, readers in by_input.items():
            run.rewrite(module, x, readers)
        num_tables = self._tables(module)
        changed = bool(sites or num_tables)
        if changed:
            Canonicalize().run(module, ctx)
        stats: dict[str, int | float] = {
            "linear-layers": len(sites), "tables": num_tables, "bits": fmt.bits,
        }  # fmt: skip
        if run.errors:
            stats["worst-error"] = round(max(run.errors.values()), 6)
        decisions = {"errors": {name: round(e, 6) for name, e in sorted(run.errors.items())}}
        return PassResult(changed, stats, tuple(skipped), decisions if run.errors else {})

    def _mode(self, fmt: Format) -> str:
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UsageError(f"pass `quantize`, option `smooth`: {self.smooth:g} is not in 0 to 1")
        if (self.tail or 0) < 0 or self.group < 0:
            raise UsageError("pass `quantize`: `tail` and `group` are not negative")
        if self.activations == "auto":
            return "token" if fmt.bits == INT8.bits and not self.group else "none"
        if self.activations != "none" and (fmt.bits != INT8.bits or self.group):
            raise UsageError(
                f"pass `quantize`: activations={self.activations} needs 8-bit weights with a "
                "scale per output",
                hint="use weights=int8 and leave `group` out, or activations=none",
            )
        return self.activations

    def _method(self, fmt: Format, ctx: Context) -> Method:
        if self.method != "auto":
            return self.method
        return "gptq" if fmt.bits < INT8.bits and ctx.samples else "search"

    def _kept(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep)

    def _tables(self, module: Module) -> int:
        if self.embeddings == "none":
            return 0
        count = 0
        for site in list(tables(module.graph)):
            array = constant_of(site.table, 1 << 62)
            if array is None or self._kept(site.name):
                continue
            encoded = round_to(array.T, grid_of(array.T, INT8, array.shape[1]))
            b = Builder(module.graph, site.node, site.node.loc)
            write_table(b, site, np.ascontiguousarray(encoded.codes.T), encoded.grid.scale[0])
            count += 1
        return count


@dataclass(slots=True)
class _Run:
    """One run of the pass."""

    options: Quantize
    fmt: Format
    mode: str
    method: Method
    found: Mapping[Value, Statistics]
    errors: dict[str, float]

    def rewrite(self, module: Module, x: Value, readers: Sequence[Linear]) -> None:
        """Rewrites all layers that read one value."""
        size = readers[0].sizes[0]
        stats = self.found.get(x)
        matrices = [site.matrix() for site in readers]
        factor, tail = np.ones(size, np.float32), np.zeros(0, np.int64)
        weight = np.zeros(size)
        for matrix in matrices:
            weight += np.einsum("kn,kn->k", matrix, matrix, dtype=np.float64)
        smooth, num_tail = self.options.smooth, self.options.tail
        if stats is not None and self.mode == "static":
            factor = smoothing(stats, _SMOOTH if smooth is None else smooth)
        if num_tail is None:
            num_tail = _TAIL if self.mode == "token" else 0
        if stats is not None and self.mode in ("static", "token"):
            tail = tail_channels(stats, min(num_tail, size), factor)
        body = np.ones(size, bool)
        body[tail] = False
        b = Builder(module.graph, readers[0].node, readers[0].node.loc)
        span: Range | None = None
        if self.mode == "static" and stats is not None:
            span = searched_range(stats, body, factor, weight / np.square(factor))
        source = self._input(b, x, span, factor, tail)
        for site, matrix in zip(readers, matrices, strict=True):
            self._layer(module, site, matrix, source, stats, span, factor, tail, body)

    def _input(self, b: Builder, x: Value, span: Range | None, factor: Array, tail: Array) -> Input:
        if span is not None:
            return static_input(b, x, span, None if (factor == 1).all() else factor, tail)
        if self.mode == "token":
            return token_input(b, x, factor.size, tail)
        return dynamic_input(b, x) if self.mode == "dynamic" else Input(x)

    def _layer(
        self, module: Module, site: Linear, matrix: Array, source: Input,
        stats: Statistics | None, span: Range | None, factor: Array, tail: Array, body: Array,
    ) -> None:  # fmt: skip
        size = matrix.shape[0]
        scaled = matrix / factor[:, None]
        main = np.where(body[:, None], scaled, np.float32(0))
        per_channel = self.options.group == 0 and self.fmt.bits == INT8.bits
        group = size if per_channel else self.options.group or _GROUP_BELOW_8_BITS
        encoded = encode(main, self.fmt, group, self.method, stats)
        shift = None
        if stats is not None and stats.rows:
            rows = stats.sample()
            exact = rows @ matrix
            got = self._seen(rows * factor, span, encoded, tail, scaled)
            shift = (exact - got).mean(0).astype(np.float32)
            scale = float(np.sqrt(np.square(exact).mean())) or 1.0
            self.errors[site.name] = float(np.sqrt(np.square(exact - got - shift).mean())) / scale
        b = Builder(module.graph, site.node, site.node.loc)
        value = dequantized(b, site.name, encoded, per_channel=per_channel)
        write_linear(b, site, source, value, scaled[tail] if tail.size else None, shift)

    def _seen(
        self, rows: Array, span: Range | None, encoded: Encoded, tail: Array, scaled: Array
    ) -> Array:
        """Returns what the quantized layer makes of rows that were seen, f32[R, N]."""
        weight = encoded.decode()
        if span is not None:
            result = rounded(rows, span) @ weight
        elif self.mode == "token":
            inner = rows.copy()
            inner[:, tail] = 0
            top = np.maximum(np.abs(inner).max(1, keepdims=True), np.finfo(np.float32).tiny)
            result = np.rint(inner / top * 127) / 127 * top @ weight
        else:
            result = rows @ weight
        return result + rows[:, tail] @ scaled[tail]  # type: ignore[no-any-return]
