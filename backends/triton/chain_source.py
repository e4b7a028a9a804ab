"""Writes the source of a generated kernel: kernel, reference, allocation, launch, operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.backends.triton.chain_forms import FLOATS, TORCH_FLOATS, number_text, operands_of
from regraft.backends.triton.chain_gradients import gradients_of
from regraft.backends.triton.chain_kernel import PLACE, KernelWriter, is_scalar
from regraft.backends.triton.chain_places import (
    as_rows,
    element_texts,
    is_placed,
    place_texts,
    rows_text,
    shape_of,
    width_text,
)
from regraft.backends.triton.chain_steps import Lowering
from regraft.backends.triton.gradient_source import GradientWriter
from regraft.backends.triton.group_kernel import call_lines, forward_kernel, launch_lines
from regraft.backends.triton.regions import Region
from regraft.ir.graph import Value
from regraft.ir.ops.cast import cast
from regraft.ir.types import DType

_MAX_WORDS = 4
_IMAGE_RANKS = (4, 5)
BY_PYTORCH = "by PyTorch's own operators"
"""How references compute."""


@dataclass(frozen=True, slots=True)
class KernelText:
    """A generated kernel.

    Args:
        stem: What it does, in words.
        text: The source, the name being `PLACE`.
        operands: The values that a call takes, in order.
        needs: Functions of the kernels that it uses.
        weight_idx: Which operand is a matrix that a product takes transposed.
        variables: What it names as the model does: another name makes no other kernel.
        gradient: `kernel`, `handed through` where it is that of the results, or `reference` and
            why it is that.
    """

    stem: str
    text: str
    operands: tuple[Value, ...]
    needs: tuple[str, ...]
    weight_idx: int | None = None
    variables: tuple[str, ...] = ()
    gradient: str = ""


def stem_of(words: Sequence[str]) -> str:
    """Returns a name of operators in order: `add_layer_norm_gelu`, `exp_mul_add_and_3`."""
    short = [word.removeprefix("reduce_") for word in words if word not in ("identity",)]
    if len(short) <= _MAX_WORDS:
        return "_".join(short)
    return f"{'_'.join(short[: _MAX_WORDS - 1])}_and_{len(short) - _MAX_WORDS + 1}"


def returning(lines: Sequence[str], results: Sequence[str]) -> list[str]:
    """Returns the lines of a body that returns results, the last of which it need not name."""
    start = f"{results[0]} = "
    if len(results) == 1 and lines[-1].startswith(start):
        return [*lines[:-1], f"return {lines[-1].removeprefix(start)}"]
    return [*lines, f"return {', '.join(results)}"]


def kernel_text(region: Region, *, is_part: bool = False) -> KernelText:
    """Returns the source of the kernel of a region.

    Args:
        region: The region.
        is_part: Whether it is called by the gradient of another operator, so that its own is
            named and not registered.
    """
    lowering = Lowering(region)
    lowered = lowering.lowered()
    kernel = KernelWriter(region, lowered)
    writer = _OperatorWriter(kernel)
    found = gradients_of(region, lowering, lowered)
    lines = kernel.kernel()
    if region.groups:
        dtypes = {name: value.dtype for name, value in kernel.results.items()}
        lines = forward_kernel(lowered.operands, lowered.steps, dtypes)
    text = "\n\n\n".join(
        ["\n".join(part) for part in (lines, writer.reference(), writer.allocate(),
                                      writer.launch())]
        + [writer.operator()]
    )  # fmt: skip
    if isinstance(found, str):
        chain, gradient = BY_REFERENCE, f"reference ({found})"
        needed: tuple[str, ...] = ("ChainGradient",)
        variables = lowered.variables
    else:
        written = GradientWriter(region, lowered.operands, found, writer.shape())
        chain, gradient = written.differentiated(), "kernel" if written.outs else "handed through"
        needed = written.needs
        variables = tuple(dict.fromkeys((*lowered.variables, *written.variables)))
        text += f"\n\n\n{written.text()}" if written.outs else ""
    text += f"\n\n\n_CHAIN_OF_{PLACE} = {chain}"
    if not is_part:
        needed = (*needed, "gradients_by_kernel", "keep_operands_and_shapes")
        text += f"\n\n\n{_DIFFERENTIATED}"
    operands = tuple(operand.value for operand in lowered.operands)
    is_flat = kernel.is_flat and not kernel.has_rows
    shared = ("operator", "config_for", *needed, "block_of")
    shared += ("promoted",) if "promoted(" in text else ()
    rows: tuple[str, ...] = ("rows_together",) if is_flat else ("rows_of",)
    if writer.like is not None:
        rows = ("in_layout_of", "layout_of")
        rows += ("elements_below",) if "elements_below(" in text else ()
    if region.groups:
        rows = ()
    is_sized = region.columns > 1 or any(map(is_placed, lowered.operands))
    sizes = ("size_between",) if is_sized else ()
    needs = dict.fromkeys((*shared, *rows, *sizes, *lowered.needs))
    return KernelText(
        stem_of(lowered.names), text, operands, tuple(needs), variables=variables,
        gradient=gradient,
    )  # fmt: skip


BY_REFERENCE = f"ChainGradient(reference_{PLACE}, None, None, None)"
"""How a chain is differentiated that has an operator without a rule."""
_DIFFERENTIATED = f"""def _differentiate_{PLACE}(
    ctx: Any, *gradients: Tensor
) -> tuple[Tensor | None, ...]:
    return gradients_by_kernel(_CHAIN_OF_{PLACE}, ctx, gradients)


{PLACE}.register_autograd(
    _differentiate_{PLACE}, setup_context=keep_operands_and_shapes
)"""


class _OperatorWriter:
    """Writes what makes an operator of a kernel."""

    def __init__(self, kernel: KernelWriter) -> None:
        self.region, self.lowered = kernel.region, kernel.lowered
        self.results, self.tiles, self.outs = kernel.results, kernel.tiles, kernel.outs
        self.has_rows, self.is_flat = kernel.has_rows, kernel.is_flat
        self.is_of_planes = kernel.is_of_planes
        self.like = self._like()

    def _like(self) -> str | None:
        """Returns an operand that results lie in memory like: of images, channels may be last."""
        space = self.region.space
        is_image = self.is_flat and not self.has_rows and len(space) in _IMAGE_RANKS
        wide = [op for op in self.lowered.operands if op.is_wide and not is_scalar(op)]
        if not wide or any(op.value.shape != space for op in wide):
            return None
        return wide[0].name if is_image or self.is_of_planes else None

    def _signature(self) -> str:
        return ", ".join(f"{op.name}: Tensor" for op in self.lowered.operands)

    def _returned(self) -> str:
        count = len(self.results)
        return "Tensor" if count == 1 else f"tuple[{', '.join(['Tensor'] * count)}]"

    def reference(self) -> list[str]:
        """Returns the lines of the reference."""
        lines = [f"def reference_{PLACE}({self._signature()}) -> {self._returned()}:"]
        lines.append(f'    """Returns what `{PLACE}_kernel` writes, {BY_PYTORCH}."""')
        lines += [f"    {line}" for line in returning(self.lowered.reference, self.lowered.results)]
        return lines

    def shape(self) -> str:
        """Returns the expression of the space's sizes."""
        return shape_of(self.lowered.operands, self.region.space)

    def allocate(self) -> list[str]:
        """Returns the lines of the fake implementation."""
        lines = [f"def _allocate_{PLACE}({self._signature()}) -> {self._returned()}:"]
        lines.append(f"    shape = {self.shape()}")
        texts = []
        for name, value in self.results.items():
            shape = self._shape_of(name, value)
            layout = "" if self.like is None else f", memory_format=layout_of({self.like})"
            texts.append(
                f"torch.empty({shape}, dtype={self._dtype(value)}, device={self._device()}{layout})"
            )
        if len(texts) == 1:
            return [*lines, f"    return {texts[0]}"]
        return [*lines, "    return (", *(f"        {text}," for text in texts), "    )"]

    def _shape_of(self, name: str, value: Value) -> str:
        space, shape = self.region.space, value.shape or ()
        if self.tiles[name]:
            return "shape" if len(shape) == len(space) else f"shape[-{len(shape)}:]"
        return rows_text(self.region.columns, is_dropped=len(shape) < len(space))

    def _dtype(self, value: Value) -> str:
        if value.dtype is None or value.dtype is DType.BOOL:
            return "torch.bool"
        like, fixed = self._dtype_sources(value)
        if not like:
            return TORCH_FLOATS[value.dtype]
        if len(like) == 1 and not fixed:
            return f"{like[0]}.dtype"
        return f"promoted({', '.join([*like, *fixed])})"

    def _dtype_sources(self, value: Value) -> tuple[list[str], list[str]]:
        """Returns the operands that a result has its dtype from, and the dtype a step fixes.

        What is compared, cast, or computed for another result has no part in it.
        """
        operands = {op.value: op.name for op in self.lowered.operands}
        nodes, reached, fixed = set(self.region.nodes), [value], False
        for each in reached:  # it grows
            node = each.producer
            if each in operands or node is None or node not in nodes:
                continue
            read = () if node.op is cast else operands_of(node)
            same = [x for x in read if x.dtype is value.dtype and number_text(x) is None]
            fixed |= not same
            reached += [x for x in dict.fromkeys(same) if x not in reached]
        like = [name for x, name in operands.items() if x in reached]
        return like, [TORCH_FLOATS[value.dtype]] if fixed and value.dtype else []

    def _device(self) -> str:
        return f"{self.lowered.operands[0].name}.device"

    def launch(self) -> list[str]:
        """Returns the lines of the launch."""
        names = [op.name for op in self.lowered.operands]
        outs = list(self.outs.values())
        entry = "generated_rows" if self.has_rows else "generated"
        typed = next(
            name
            for name, value in (
                *((op.name, op.value) for op in self.lowered.operands),
                *zip(outs, self.results.values(), strict=True),
            )
            if value.dtype in FLOATS
        )
        lines = [f"def _launch_{PLACE}({self._signature()}) -> {self._returned()}:"]
        lines.append(f"    {', '.join(outs)} = _allocate_{PLACE}({', '.join(names)})")
        lines.append(f"    if {outs[0]}.numel() == 0:")
        lines.append(f"        return {', '.join(outs)}")
        if self.region.groups:
            lines += self._launch_of_groups((*names, *outs), typed)
            return [*lines, f"    return {', '.join(outs)}"]
        whole = [op.name for op in self.lowered.operands if op.is_every_row and op.is_wide
                 and not is_scalar(op)]  # fmt: skip
        flat = self.is_flat and not self.has_rows and whole
        if self.like is not None:
            comma = "," if len(whole) == 1 else ""
            lines.append(f"    {', '.join(whole)}{comma} = "
                         f"in_layout_of({', '.join([outs[0], *whole])})")  # fmt: skip
            lines.append(f"    num_rows, N = {whole[0]}.shape")
            lines += [f"    {op.name} = {op.name}.contiguous()" for op in self.lowered.operands
                      if op.runs and not op.is_wide]  # fmt: skip
        elif flat:
            lines.append(f"    {', '.join(whole)}{',' if len(whole) == 1 else ''} = "
                         f"rows_together({', '.join(whole)})")  # fmt: skip
            lines.append(f"    num_rows, N = {whole[0]}.shape")
        else:
            lines.append(f"    shape = {self.shape()}")
            lines.append(f"    N = {width_text(self.region)}")
            lines.append(f"    num_rows = {outs[0]}.numel()"
                         + (" // N" if self.tiles[next(iter(self.results))] else ""))  # fmt: skip
            for op in self.lowered.operands:
                if is_scalar(op):
                    continue
                lines.append(f"    {op.name} = {as_rows(op, self.region.columns)}")
        lines.append(f'    config = config_for("{entry}", {typed}, N)')
        if self.has_rows:
            lines.append('    block = min(block_of(N), config["max_block"])')
            lines.append(f"    wrap_triton({PLACE}_kernel)[(triton.cdiv(num_rows, "
                         'config["rows"]),)](')  # fmt: skip
        else:
            lines.append('    block = min(block_of(N), config["elements"])')
            lines.append('    height = config["elements"] // block')
            lines.append("    grid = (triton.cdiv(num_rows, height) * triton.cdiv(N, block),)")
            lines.append(f"    wrap_triton({PLACE}_kernel)[grid](")
        lines += [f"        {name}," for name in (*names, *outs, "num_rows", "N")]
        for op in self.lowered.operands:
            if self.is_of_planes:
                texts = element_texts(op, outs[0])
            else:
                texts = place_texts(op, self.region.space, self.region.columns)
            lines += [f"        {text}," for text in texts]
        rows = 'config["rows"]' if self.has_rows else "height"
        lines += [f"        ROWS={rows},", "        BLOCK=block,"]
        if self.has_rows:
            lines.append("        SINGLE=block >= N,")
        lines += ['        num_warps=config["warps"],', "    )", f"    return {', '.join(outs)}"]
        return lines

    def _launch_of_groups(self, tensors: Sequence[str], typed: str) -> list[str]:
        groups, space = self.region.groups, self.region.space
        x = next(op.name for op in self.lowered.operands if op.value.shape == space)
        operands = self.lowered.operands
        lines = launch_lines(operands, x, typed, len(space), groups, "generated_rows")
        lines += call_lines(f"{PLACE}_kernel", tensors, x, groups)
        return [f"    {line}" for line in lines]

    def operator(self) -> str:
        """Returns the statement that makes the operator."""
        return f"""{PLACE} = operator(
    "{PLACE}",
    _launch_{PLACE},
    allocate=_allocate_{PLACE},
    reference=reference_{PLACE},
    kernel={PLACE}_kernel,
)"""
