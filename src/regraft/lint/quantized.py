"""Traps of quantized models that the graph shows: ranges, layouts, and kernels that are slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant, opaque
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import conv, gathering, linalg, quant, quant_linalg, softmax
from regraft.ir.ops.quant import integer_range
from regraft.ir.types import DType
from regraft.lint.rule import LintRule, Severity, Subject, name_of, value_name

Array = np.ndarray[Any, Any]

_ORT_CPU = ("ort-cpu",)
_ANY_SIZE = 1 << 62
_MASK_RANGE = 5e3
"""What a masked position is lowered by is 1e4 and more; scores stay below a few hundred."""
_UNEVEN = 0.5
"""Columns that use half of the codes lose one bit."""
_MIN_WEIGHTS = 4096
_SAFE_CODES = 64
"""Two products of 255 by 64 fit the 16 bits that CPUs without VNNI add them in."""
_FLOAT_CODES = frozenset({DType.F4E2M1, DType.F8E4M3FN, DType.F8E5M2, DType.F8E4M3FNUZ,
                          DType.F8E5M2FNUZ})  # fmt: skip
_SMALL_BITS = 4
_PRODUCTS = frozenset({linalg.matmul, linalg.gemm, conv.conv})
_INTEGER_PRODUCTS = frozenset(
    {quant_linalg.matmul_integer, quant_linalg.conv_integer, quant_linalg.qlinear_matmul,
     quant_linalg.qlinear_conv}
)  # fmt: skip
FIX = "`regraft lint SRC --fix OUT`"
AGAIN = "quantize again from the float model: `regraft convert FLOAT -o OUT --passes quantize`"


def is_quantized(module: Module) -> bool:
    """Whether a module has any quantized operand, or an operator that may take one."""
    quantizing = {*quant.OPS, *quant_linalg.OPS, opaque}
    return any(node.op in quantizing for node in module.graph.walk())


def _quantized_scores(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        if node.op is not quant.quantize:
            continue
        x = node.inputs[0]
        maker = None if x is None else x.producer
        if maker is not None and maker.op is softmax.softmax:
            yield f"the softmax {name_of(node)}"
        elif (span := _span(node)) >= _MASK_RANGE:
            yield f"{name_of(node)} has to hold {span:.3g}"


def _span(node: Node) -> float:
    """Returns the length of the range of a `quantize`, 0 where it is not known."""
    scale, dtype = constant_of(node.inputs[1]), node.output.dtype
    if scale is None or scale.size != 1 or dtype is None or not dtype.is_integer:
        return 0.0
    low, high = integer_range(dtype)
    return float(scale.reshape(())) * (high - low)


def _shared_ranges(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        if node.op is quant.dynamic_quantize:
            yield name_of(node)


def _weights(subject: Subject) -> Iterator[tuple[Node, Value, Value | None, int]]:
    """Yields (place, codes, scale or zero point, axis of the outputs) of integer products."""
    for node in subject.module.graph.walk():
        if node.op in _INTEGER_PRODUCTS:
            codes = node.inputs[1]
            # scales of the integer products come after, as a factor: zero points tell the layout
            where = {quant_linalg.qlinear_matmul: 4, quant_linalg.qlinear_conv: 5}.get(node.op, 3)
            scale = node.inputs[where]
        elif node.op in _PRODUCTS and _quantized(node.inputs[0]):
            maker = None if node.inputs[1] is None else node.inputs[1].producer
            if maker is None or maker.op is not quant.dequantize or maker.attrs["block_size"]:
                continue
            codes, scale = maker.inputs[:2]
        else:
            continue
        if codes is not None and _is_large(codes):
            convolved = node.op in (conv.conv, quant_linalg.conv_integer, quant_linalg.qlinear_conv)
            transposed = node.op is linalg.gemm and node.attrs["trans_b"]
            yield node, codes, scale, 0 if convolved or transposed else -1


def _quantized(value: Value | None) -> bool:
    maker = None if value is None else value.producer
    return maker is not None and maker.op is quant.dequantize


def _is_large(codes: Value) -> bool:
    shape = codes.shape
    if shape is None or not is_constant(codes) or len(shape) < 2:
        return False
    return int(np.prod([s for s in shape if isinstance(s, int)])) >= _MIN_WEIGHTS


def _one_scale(subject: Subject) -> Iterator[str]:
    for node, codes, scale, axis in _weights(subject):
        if scale is not None and scale.shape not in ((), (1,)):
            continue
        if scale is None and node.op is not quant_linalg.matmul_integer:
            continue
        if scale is None and _scaled_per_column(node):
            continue
        array = constant_of(codes, _ANY_SIZE)
        if array is None or codes.dtype not in (DType.I8, DType.U8):
            continue
        wide = array.astype(np.int16) - (128 if codes.dtype is DType.U8 else 0)
        others = tuple(i for i in range(wide.ndim) if i != axis % wide.ndim)
        used = np.abs(wide).max(others) / 127
        if float(np.median(used)) < _UNEVEN:
            yield f"{value_name(codes)}: the median output uses {np.median(used):.0%} of the codes"


def _scaled_per_column(node: Node) -> bool:
    """Whether what a `matmul_integer` is multiplied by holds a vector."""
    frontier = [node.output]
    for _ in range(3):  # cast, and a factor per operand or their product
        frontier = [user.output for value in frontier for user in value.users]
        for value in frontier:
            operands = [] if value.producer is None else list(value.producer.inputs)
            for operand in list(operands):
                if operand is not None and operand.producer is not None:
                    operands += operand.producer.inputs
            if any(_is_vector(operand) for operand in operands):
                return True
    return False


def _is_vector(value: Value | None) -> bool:
    if value is None or not is_constant(value) or value.dtype is not DType.F32:
        return False
    return bool(value.shape) and value.shape not in ((1,), None)


def _unsigned_weights(subject: Subject) -> Iterator[str]:
    for _, codes, _, _ in _weights(subject):
        if codes.dtype is DType.U8:
            yield value_name(codes)


def _saturating(subject: Subject) -> Iterator[str]:
    if subject.target != "onnx" and has_vnni():
        return
    for _, codes, _, _ in _weights(subject):
        array = constant_of(codes, _ANY_SIZE)
        if codes.dtype is DType.I8 and array is not None:
            top = int(np.abs(array.astype(np.int16)).max(initial=0))
            if top > _SAFE_CODES:
                yield f"{value_name(codes)} has codes to {top}"


@cache
def has_vnni() -> bool:
    """Whether this machine's CPU adds four products of 8 bits in 32, as far as it tells."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError:
        return True  # no x86 that tells: ARM has no such additions
    return "vnni" in text or ("GenuineIntel" not in text and "AuthenticAMD" not in text)


def _integer_convolutions(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        if node.op is quant_linalg.conv_integer:
            yield name_of(node)


def _ranges_per_channel(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        along = node.op is quant.quantize and node.attrs["axis"] is not None
        if along and not is_constant(node.inputs[0]):
            yield name_of(node)


def _float_codes(wanted: Callable[[DType], bool]) -> Callable[[Subject], Iterator[str]]:
    def places(subject: Subject) -> Iterator[str]:
        for node in subject.module.graph.walk():
            x = node.inputs[0] if node.op is quant.dequantize else None
            if x is not None and x.dtype in _FLOAT_CODES and wanted(x.dtype):
                yield name_of(node)

    return places


def _float_tables(subject: Subject) -> Iterator[str]:
    stored, tables = 0, {}
    for node in subject.module.graph.walk():
        x = node.inputs[0] if node.op in (quant.dequantize, gathering.gather) else None
        if x is None or x.dtype is None or not is_constant(x) or x.rank != 2:
            continue
        num = int(np.prod([s for s in x.shape or () if isinstance(s, int)]))
        if node.op is quant.dequantize and x.dtype.bits <= _SMALL_BITS:
            stored += num * x.dtype.bits // 8
        elif node.op is gathering.gather and x.dtype is DType.F32:
            tables[value_name(x)] = num * 4
    for name, num_bytes in tables.items() if stored else ():
        if num_bytes > stored:
            yield f"{name}: {num_bytes / 1e6:.1f} MB, all codes {stored / 1e6:.1f} MB"


def _tied_twice(subject: Subject) -> Iterator[str]:
    """Yields float tables that are a quantized matrix once more."""
    tables = {}
    for node in subject.module.graph.walk():
        x = node.inputs[0] if node.op is gathering.gather else None
        if x is not None and x.dtype is DType.F32 and x.rank == 2 and is_constant(x):
            tables[tuple(x.shape or ())] = x
    for node in subject.module.graph.walk() if tables else ():
        if node.op is not quant.dequantize or node.output.rank != 2:
            continue
        shape = tuple(node.output.shape or ())
        for turned in (False, True):
            table = tables.get(shape[::-1] if turned else shape)
            if table is not None and _same(node, table, turned):
                yield f"{value_name(table)} and {name_of(node)}"


def _same(node: Node, table: Value, turned: bool) -> bool:
    """Whether codes stand for a table: they differ by half a step and no more."""
    arrays = [constant_of(value, _ANY_SIZE) for value in (*node.inputs[:2], table)]
    codes, scale, floats = arrays
    if codes is None or scale is None or floats is None:
        return False
    axis, group = node.attrs["axis"], node.attrs["block_size"]
    zero = constant_of(node.inputs[2], _ANY_SIZE)
    middle = 0 if zero is None else quant.spread(zero.astype(np.float32), codes, axis, group)
    steps = quant.spread(scale, codes, axis, group)
    error = (codes.astype(np.float32) - middle) * steps - (floats.T if turned else floats)
    return float(np.mean(np.abs(error) <= np.abs(steps) * 1.01)) > 0.99


RULES = (
    LintRule(
        "RG201", "quantized-scores", "Attention scores, masks or softmaxes in 8 bits.",
        "A range that holds a mask of -10000 leaves no code for the scores themselves; tools that "
        "quantize every operator lose half of a transformer's accuracy.",
        f"{FIX} leaves them in float; better, {AGAIN}",
        Severity.WARNING, _quantized_scores,
    ),
    LintRule(
        "RG202", "range-of-the-batch", "Ranges that each run finds over the whole tensor.",
        "A result depends on what else is in the batch, and on its padding.",
        f"{FIX} gives every row its own range",
        Severity.WARNING, _shared_ranges,
    ),
    LintRule(
        "RG203", "one-scale-per-matrix", "Weights with one scale whose outputs differ in size.",
        "Most outputs use few of the codes: on sentence encoders the error is six times that of "
        "a scale per output.",
        f"the lost bits are gone; {AGAIN}",
        Severity.WARNING, _one_scale,
    ),
    LintRule(
        "RG204", "unsigned-weights", "Products of unsigned by unsigned integers.",
        "The fast instructions take signed weights: as fast as float, a third of the speed.",
        f"{FIX} stores the same numbers as signed integers",
        Severity.WARNING, _unsigned_weights, _ORT_CPU,
    ),
    LintRule(
        "RG205", "saturating-weights", "8-bit weights on CPUs that add products in 16 bits.",
        "Without VNNI two products of 255 by 127 overflow and are cut off: other outputs than on "
        "the machine that the model was made on.",
        "`regraft convert FLOAT -o OUT --passes 'quantize{weights=int7}'`",
        Severity.WARNING, _saturating, ("onnx", "ort-cpu"),
    ),
    LintRule(
        "RG206", "integer-convolution", "ConvInteger.",
        "It has no fast kernel: 2 to 30 times slower than the float convolution.",
        f"{FIX} makes it a float convolution; for speed, {AGAIN} with samples",
        Severity.WARNING, _integer_convolutions, _ORT_CPU,
    ),
    LintRule(
        "RG207", "range-per-channel", "Values quantized with a scale per channel at run time.",
        "QuantizeLinear along an axis runs number by number: a third of the float model's speed.",
        f"{FIX} multiplies by the inverse scales and quantizes in one range",
        Severity.WARNING, _ranges_per_channel, _ORT_CPU,
    ),
    LintRule(
        "RG208", "float8-on-cpu", "Weights in 8-bit floats on the CPU.",
        "No kernel takes them: they are dequantized on every run.",
        f"{FIX} stores them as 8-bit integers",
        Severity.WARNING, _float_codes(lambda dtype: dtype.bits == 8), _ORT_CPU,
    ),
    LintRule(
        "RG209", "float4-on-cpu", "Weights in 4-bit floats on the CPU.",
        "The CPU provider has no kernel for them: the model does not run.",
        f"{FIX} stores the same numbers as 8-bit integers",
        Severity.ERROR, _float_codes(lambda dtype: dtype.bits == 4), _ORT_CPU,
    ),
    LintRule(
        "RG210", "float-table", "Tables in float beside weights of 4 bits and less.",
        "The table is most of the file: such a file can be larger than one of 8 bits throughout.",
        f"{FIX} stores rows in 8 bits",
        Severity.WARNING, _float_tables,
    ),
    LintRule(
        "RG211", "tied-twice", "A table in float that a quantized matrix holds once more.",
        "Embedding and head were one weight: the file holds it twice, and they differ.",
        "quantize the shared weight once: read rows of the codes, or leave the head in float",
        Severity.WARNING, _tied_twice,
    ),
)  # fmt: skip
"""Rules about quantized graphs, in order of their ids."""
