"""Writes the source of a product with chains: kernel, reference, launch, operator, gradient."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.triton.chain_forms import TORCH_FLOATS
from regraft.backends.triton.chain_kernel import PLACE, is_scalar
from regraft.backends.triton.chain_places import is_placed, place_texts
from regraft.backends.triton.chain_source import BY_PYTORCH, KernelText, returning, stem_of
from regraft.backends.triton.chain_steps import Operand
from regraft.backends.triton.product_chains import shaped_like
from regraft.backends.triton.product_gradient_source import AFTER, BEFORE, gradient_text
from regraft.backends.triton.product_kernel import PRODUCT, ProductKernelWriter
from regraft.backends.triton.product_regions import ProductRegion
from regraft.backends.triton.region_nodes import Shape
from regraft.ir.graph import Value
from regraft.ir.types import DType

_SHARED = ("operator", "config_for", "rows_of", "place_of_tile")


def product_text(region: ProductRegion) -> KernelText:
    """Returns the source of the kernel of a product with chains."""
    kernel = ProductKernelWriter(region)
    writer = _OperatorWriter(kernel)
    parts = ["\n".join(kernel.kernel()), *writer.chains()]
    parts += ["\n".join(part) for part in (writer.reference(), writer.allocate(), writer.launch())]
    operands = (*kernel.inputs, *kernel.after.operands)
    needs = [*_SHARED, *([] if region.before else ["product_of"])]
    needs += ["block_of"] if kernel.has_rows else []
    needs += ["size_between"] if any(map(is_placed, operands)) else []
    needs += [*(() if kernel.before is None else kernel.before.needs), *kernel.after.needs]
    words = (() if kernel.before is None else kernel.before.names, kernel.after.names)
    stems = [stem_of(names) for names in words]
    stem = "_".join([*stems[:1], "linear", *stems[1:]]).strip("_")
    before = () if kernel.before is None else kernel.before.variables
    gradient = gradient_text(kernel)
    variables = (*before, *kernel.after.variables, *gradient.variables)
    texts = [*parts, writer.operator(), *filter(None, gradient.texts)]
    return KernelText(
        stem, "\n\n\n".join(texts), operands_of_call(region, kernel),
        tuple(dict.fromkeys((*needs, *gradient.needs))), max(1, len(kernel.inputs)),
        tuple(dict.fromkeys(variables)), gradient.gradient,
    )  # fmt: skip


def operands_of_call(region: ProductRegion, kernel: ProductKernelWriter) -> tuple[Value, ...]:
    """Returns the values that a call takes, in order."""
    core = region.core
    rows = (core.rows,) if kernel.before is None else tuple(op.value for op in kernel.inputs)
    bias = () if core.bias is None else (core.bias,)
    return (*rows, core.weight, *bias, *(op.value for op in kernel.after.operands))


class _OperatorWriter:
    """Writes what makes an operator of a kernel."""

    def __init__(self, kernel: ProductKernelWriter) -> None:
        self.kernel, self.region, self.core = kernel, kernel.region, kernel.region.core
        self.outs = list(kernel.outs.values())

    def _signature(self, names: Sequence[str]) -> str:
        return ", ".join(f"{name}: Tensor" for name in names)

    def _returned(self) -> str:
        count = len(self.outs)
        return "Tensor" if count == 1 else f"tuple[{', '.join(['Tensor'] * count)}]"

    def chains(self) -> list[str]:
        """Returns what follows the product as a function of PyTorch."""
        after = self.kernel.after
        if not self.region.after:
            return []
        names = [PRODUCT, *(op.name for op in after.operands)]
        lines = [f"def reference_{AFTER}({self._signature(names)}) -> {self._returned()}:"]
        lines.append(f'    """Returns what `{PLACE}` makes of its product, a linear layer."""')
        lines += [f"    {line}" for line in returning(after.reference, after.results)]
        return ["\n".join(lines)]

    def reference(self) -> list[str]:
        """Returns the lines of the reference."""
        names = self.kernel.names
        lines = [f"def reference_{PLACE}({self._signature(names)}) -> {self._returned()}:"]
        lines.append(f'    """Returns what `{PLACE}_kernel` writes, {BY_PYTORCH}."""')
        if self.kernel.before is not None:
            inputs = ", ".join(op.name for op in self.kernel.inputs)
            lines.append(f"    x = reference_{BEFORE}({inputs})")
        bias = "" if self.core.bias is None else ", bias"
        call = f"torch.nn.functional.linear(x, weight{bias})"
        if not self.region.after:
            return [*lines, f"    return {call}"]
        others = "".join(f", {op.name}" for op in self.kernel.after.operands)
        if self.core.is_shaped_after:
            call += f".reshape({self._shaped_like()}.shape)"
        lines.append(f"    {PRODUCT} = {call}")
        return [*lines, f"    return reference_{AFTER}({PRODUCT}{others})"]

    def _lead(self) -> str:
        """Returns the leading axes of the results."""
        if self.core.is_shaped_after:
            return f"{self._shaped_like()}.shape[:-1]"
        if self.kernel.before is None:
            return "x.shape[:-1]"
        space = self.core.rows.shape
        full = next(op for op in self.kernel.inputs if op.value.shape == space)
        return f"{full.name}.shape[:-1]"

    def _shaped_like(self) -> str:
        """Returns the operand that has the shape of the results."""
        operands = {op.value: op.name for op in self.kernel.after.operands}
        found = shaped_like(self.core, list(operands))
        if found is None:
            raise AssertionError("no operand says which shape a product has")
        return operands[found]

    def allocate(self) -> list[str]:
        """Returns the lines of the fake implementation."""
        names = self.kernel.names
        lines = [f"def _allocate_{PLACE}({self._signature(names)}) -> {self._returned()}:"]
        lines.append(f"    shape = (*{self._lead()}, weight.shape[0])")
        texts = [
            f"torch.empty(shape, dtype={self._dtype(value)}, device=weight.device)"
            for value in self.region.outputs
        ]
        if len(texts) == 1:
            return [*lines, f"    return {texts[0]}"]
        return [*lines, "    return (", *(f"        {text}," for text in texts), "    )"]

    def _dtype(self, value: Value) -> str:
        if value.dtype is None or value.dtype is DType.BOOL:
            return "torch.bool"
        is_same = value.dtype is self.core.weight.dtype
        return "weight.dtype" if is_same else TORCH_FLOATS[value.dtype]

    def launch(self) -> list[str]:
        """Returns the lines of the launch."""
        names, outs = self.kernel.names, self.outs
        operands = (*self.kernel.inputs, *self.kernel.after.operands)
        lines = [f"def _launch_{PLACE}({self._signature(names)}) -> {self._returned()}:"]
        lines.append(f"    {', '.join(outs)} = _allocate_{PLACE}({', '.join(names)})")
        lines.append(f"    if {outs[0]}.numel() == 0:")
        lines.append(f"        return {', '.join(outs)}")
        lines.append("    N, K = weight.shape")
        lines.append(f"    num_rows = {outs[0]}.numel() // N")
        if any(map(is_placed, operands)):
            lines.append(f"    shape = {outs[0]}.shape")
        if self.kernel.before is None:
            lines.append("    x = rows_of(x)")
        for op in operands:
            if is_scalar(op):
                continue
            is_whole = op.is_every_row and op.is_wide
            lines.append(f"    {op.name} = " + (f"rows_of({op.name})" if is_whole
                                               else f"{op.name}.contiguous()"))  # fmt: skip
        if self.core.bias is not None:
            lines.append("    bias = bias.contiguous()")
        entry = "generated_linear" if self.kernel.before is None else "generated_rows_linear"
        entry = "generated_linear_rows" if self.kernel.has_rows else entry
        columns = "block_of(N)" if self.kernel.has_rows else 'config["n"]'
        lines.append(f'    config = config_for("{entry}", weight, num_rows)')
        lines.append(f"    columns = {columns}")
        lines.append('    tiles = triton.cdiv(num_rows, config["m"]) * triton.cdiv(N, columns)')
        lines.append(f"    wrap_triton({PLACE}_kernel)[(tiles,)](")
        lines += [f"        {name}," for name in (*names, *outs, "num_rows", "N", "K")]
        lines += [f"        {text}," for text in self._strides()]
        lines.append('        PRECISION="ieee",')
        lines += ['        BLOCK_M=config["m"],', "        BLOCK_N=columns,"]
        lines.append('        BLOCK_K=config["k"],')
        lines += ['        GROUP=config["group"],', '        num_warps=config["warps"],']
        lines += ['        num_stages=config["stages"],', "    )"]
        return [*lines, f"    return {', '.join(outs)}"]

    def _strides(self) -> list[str]:
        rows, result = self.core.rows.shape or (), self.core.result.shape or ()
        first = ["x.stride(0)"]
        if self.kernel.before is not None:
            first = _texts(self.kernel.inputs, rows)
        own = ["weight.stride(0)", "weight.stride(1)"]
        return [*first, *own, *_texts(self.kernel.after.operands, result)]

    def operator(self) -> str:
        """Returns the statement that makes the operator."""
        return f"""{PLACE} = operator(
    "{PLACE}",
    _launch_{PLACE},
    allocate=_allocate_{PLACE},
    reference=reference_{PLACE},
    kernel={PLACE}_kernel,
    plain_in_autocast=True,
)"""


def _texts(operands: Sequence[Operand], space: Shape) -> list[str]:
    return [text for op in operands for text in place_texts(op, space)]
