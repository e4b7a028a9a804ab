"""Writes the gradient of a generated kernel as a kernel of its own, with its operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regraft.backends.triton.chain_gradients import Gradients
from regraft.backends.triton.chain_kernel import (
    PLACE,
    KernelWriter,
    is_per_column,
    is_scalar,
    load_line,
    places_of,
    statement,
)
from regraft.backends.triton.chain_places import as_rows, rows_text, width_text
from regraft.backends.triton.chain_steps import Lowered, Operand
from regraft.backends.triton.gradient_outputs import Out, Way, outs_of
from regraft.backends.triton.group_kernel import GroupKernel, Stored, call_lines, launch_lines
from regraft.backends.triton.regions import Region

_WIDTH = 68
"""Of a line of arguments; the name of a kernel stands for fewer characters than it has."""


def _wrapped(begin: str, arguments: Sequence[str], end: str) -> list[str]:
    """Returns a call or a signature, on several lines where it is long."""
    whole = f"{begin}{', '.join(arguments)}{end}"
    if len(whole) <= _WIDTH:
        return [whole]
    return [begin, *(f"    {argument}," for argument in arguments), end]


def _allocated(out: Out, sizes: str, first: str) -> list[str]:
    """Returns the lines that allocate parts of a gradient."""
    return [
        f"{out.written} = torch.empty(",
        f"    ({sizes}) if {out.needs} else (0, 0),",
        "    dtype=torch.float32,",
        f"    device={first}.device,",
        ")",
    ]


class GradientWriter:
    """Writes kernel, allocation, launch and operator of a gradient.

    Args:
        region: The region.
        operands: Those of the forward kernel.
        gradients: What is computed.
        shape: Expression of the space in terms of operands.
    """

    def __init__(
        self,
        region: Region,
        operands: Sequence[Operand],
        gradients: Gradients,
        shape: str,
    ) -> None:
        self.operands = [*operands, *gradients.given]
        self.handed = gradients.given
        self.tiles, self.space = gradients.tiles, region.space
        self.shape, self.columns, self.groups = shape, region.columns, region.groups
        self.width = width_text(region)
        self.found = outs_of(gradients)
        self.outs = self.found.made
        used = {name for step in gradients.steps for name in step.reads}
        used |= {out.variable for out in self.outs}
        self.read = [op for op in self.operands if op.name in used]
        lowered = Lowered(tuple(self.read), gradients.steps, (), (), (), ())
        self.chain = KernelWriter(replace(region, outputs=()), lowered)
        self.sums = [out for out in self.outs if out.way is Way.COLUMN_PARTS]
        ways = {out.way for out in self.outs}
        self.has_rows = self.chain.has_rows or not ways <= {Way.WHOLE, Way.PARTS}
        self.is_flat = not self.has_rows and self.chain.is_flat and Way.PARTS not in ways

    @property
    def variables(self) -> tuple[str, ...]:
        """Names that follow from those of the model."""
        own = [
            name
            for out in self.outs
            for name in (out.name, out.written, f"{out.written}_sum", out.needs, out.needs.upper())
        ]
        return (*(op.name for op in self.operands), *self.chain.lowered.variables, *own)

    @property
    def needs(self) -> tuple[str, ...]:
        """Functions of the kernels that the source uses."""
        found = ["ChainGradient"]
        if self.outs:
            found += ["gradients_of", "size_between", "operator", "config_for", "block_of"]
            found += [] if self.groups else ["rows_together" if self.is_flat else "rows_of"]
        found += ["num_processors"] if self.sums else []
        is_summed = any(out.way not in (Way.WHOLE, Way.ROW) for out in self.outs)
        return (*found, *(["summed"] if is_summed else []))

    # -- the kernel -------------------------------------------------------------------------

    def kernel(self) -> list[str]:
        """Returns the lines of the kernel."""
        if self.groups:
            stores = tuple(Stored(out.written, out.variable, out.way, out.needs.upper())
                           for out in self.outs)  # fmt: skip
            kernel = GroupKernel(tuple(self.read), self.chain.lowered.steps, stores)
            about = f"Writes the gradients of `reference_{PLACE}`"
            return kernel.lines(f"{PLACE}_gradient_kernel", about)
        pointers = [f"{op.name}_ptr" for op in self.read]
        pointers += [f"{out.written}_ptr" for out in self.outs]
        places = [place for op in self.read for place in places_of(op)]
        constants = ["ROWS", "BLOCK", *(["SINGLE"] if self.has_rows else [])]
        constants += [out.needs.upper() for out in self.outs]
        lines = ["@triton.jit", f"def {PLACE}_gradient_kernel("]
        lines += [f"    {name}," for name in (*pointers, "num_rows", "N", *places)]
        lines += [f"    {name}: tl.constexpr," for name in constants]
        lines.append("):")
        lines.append(f'    """Writes the gradients of `reference_{PLACE}`, ROWS rows at a time."""')
        body = self._rows() if self.has_rows else self._elements()
        return [*lines, *(f"    {line}" for line in body)]

    def _elements(self) -> list[str]:
        lines = [
            "tiles = tl.cdiv(N, BLOCK)",
            "row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)",
            "rows = row[:, None]",
            "column = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)[None, :]",
            "mask = (rows < num_rows) & (column < N)",
        ]
        lines += [load_line(op, "column") for op in self.read]
        for step in self.chain.lowered.steps:
            lines += statement(step)
        for out in self.outs:
            lines += self._stored(out, "column")
        return lines

    def _rows(self) -> list[str]:
        lines = ["columns = tl.arange(0, BLOCK)[None, :]"]
        lines += [f"{out.written}_sum = tl.zeros([ROWS, BLOCK], tl.float32)" for out in self.sums]
        if not self.sums:
            place = "tl.program_id(0).to(tl.int64) * ROWS"
            return [*lines, f"row = {place} + tl.arange(0, ROWS)", *self._tile()]
        lines.append("for tile in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), "
                     "tl.num_programs(0)):")  # fmt: skip
        body = ["row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)", *self._tile()]
        lines += [f"    {line}" for line in body]
        lines += ["if SINGLE:", "    share = tl.program_id(0).to(tl.int64) * N + columns"]
        for out in self.sums:
            lines += [f"    if {out.needs.upper()}:",
                      f"        total = tl.sum({out.written}_sum, axis=0, keep_dims=True)",
                      f"        tl.store({out.written}_ptr + share, total, mask=columns < N)",
            ]  # fmt: skip
        return lines

    def _tile(self) -> list[str]:
        """Returns the lines that write ROWS rows."""
        lines = ["rows = row[:, None]"]
        lines += [load_line(op, "columns") for op in self.read if not is_per_column(op)]
        single = ["mask = (rows < num_rows) & (columns < N)"]
        single += [load_line(op, "columns") for op in self.read if is_per_column(op)]
        for step in self.chain.lowered.steps:
            single += statement(step)
        for out in self.outs:
            if out.way is Way.COLUMN_PARTS:
                part = f"tl.where(mask, {out.variable}, 0.0)"
                single += [f"if {out.needs.upper()}:", f"    {out.written}_sum += {part}"]
            else:
                single += self._stored(out, "columns")
        passes, done = self.chain.reductions()
        narrow = [out for out in self.outs if out.way in (Way.ROW, Way.ROW_PARTS)]
        for out in narrow:
            passes += self._stored(out, "columns")
        wide = [out for out in self.outs if out not in narrow]
        if wide:
            body = self.chain.block_of({out.variable for out in wide}, done)
            for out in wide:
                body += self._stored(out, "column")
            passes += ["for start in range(0, N, BLOCK):", *(f"    {line}" for line in body)]
        return [
            *lines,
            "if SINGLE:", *(f"    {line}" for line in single),
            "else:", *(f"    {line}" for line in passes),
        ]  # fmt: skip

    def _stored(self, out: Out, column: str) -> list[str]:
        """Returns the lines that store a gradient where it is wanted."""
        pointer, name = f"{out.written}_ptr", out.variable
        if out.way in (Way.ROW, Way.ROW_PARTS):
            text = f"tl.reshape(tl.broadcast_to({name}, [ROWS, 1]), [ROWS])"
            text += f".to({pointer}.dtype.element_ty)" if out.way is Way.ROW else ""
            store = f"tl.store({pointer} + row, {text}, mask=row < num_rows)"
        else:
            text = name if self.tiles[name] else f"tl.where(mask, {name}, 0.0)"
            text += f".to({pointer}.dtype.element_ty)" if out.way is Way.WHOLE else ""
            store = f"tl.store({pointer} + rows * N + {column}, {text}, mask=mask)"
        return [f"if {out.needs.upper()}:", f"    {store}"]

    # -- its operator -----------------------------------------------------------------------

    def _signature(self) -> list[str]:
        tensors = [f"{op.name}: Tensor" for op in self.operands]
        return [*tensors, *(f"{out.needs}: bool" for out in self.outs)]

    def _head(self, kind: str) -> list[str]:
        """Returns the lines that begin a function of all arguments."""
        begin, end = f"def {kind}_{PLACE}_gradient(", f") -> {self._returned()}:"
        return _wrapped(begin, self._signature(), end)

    def _returned(self) -> str:
        count = len(self.outs)
        return "Tensor" if count == 1 else f"tuple[{', '.join(['Tensor'] * count)}]"

    def _arguments(self) -> list[str]:
        return [*(op.name for op in self.operands), *(out.needs for out in self.outs)]

    def allocate(self) -> list[str]:
        """Returns the lines of the fake implementation."""
        lines = self._head("_allocate")
        texts = [
            f"torch.empty({x}.shape if {out.needs} else (0,), dtype={x}.dtype, device={x}.device)"
            for out in self.outs
            for x in (out.operand.name,)
        ]
        if len(texts) == 1:
            return [*lines, f"    return {texts[0]}"]
        return [*lines, "    return (", *(f"        {text}," for text in texts), "    )"]

    def reference(self) -> list[str]:
        """Returns the lines of the reference."""
        operands = [op.name for op in self.operands if op not in self.handed]
        handed = [op.name for op in self.handed]
        needs = [str(name) for name in self.found.needs]
        arguments = [
            f"reference_{PLACE}",
            *(f"[{', '.join(x)}]" for x in (operands, handed, needs)),
        ]
        return [
            *self._head("reference"),
            f'    """Returns the gradients of `reference_{PLACE}`."""',
            *(f"    {line}" for line in _wrapped("return gradients_of(", arguments, ")")),
        ]

    def launch(self) -> list[str]:
        """Returns the lines of the launch."""
        names = ", ".join(out.name for out in self.outs)
        first = self.outs[0].operand.name
        lines = self._head("_launch")
        is_one = len(self.outs) == 1
        made = names if is_one else "made"
        call = _wrapped(f"{made} = _allocate_{PLACE}_gradient(", self._arguments(), ")")
        lines += [f"    {line}" for line in call]
        lines += [] if is_one else [f"    {names} = made"]
        lines.append(f"    shape = {self.shape}")
        last = len(self.space) - self.columns
        lines.append(f"    num_rows, N = size_between(shape, 0, {last}), {self.width}")
        zeros = f"{names}.zero_()" if is_one else "tuple(x.zero_() for x in made)"
        lines += ["    if num_rows * N == 0:", f"        return {zeros}"]
        if self.groups:
            lines += [f"    {line}" for line in self._launch_of_groups()]
            return [*lines, *self._returns()]
        lines += self._as_rows()
        entry = "generated_gradient_rows" if self.has_rows else "generated"
        lines.append(f'    config = config_for("{entry}", {first}, N)')
        if self.has_rows:
            lines.append('    block = min(block_of(N), config["max_block"])')
            lines.append('    programs = triton.cdiv(num_rows, config["rows"])')
            if self.sums:
                lines.append(f"    most = num_processors({first}.device)"
                             ' * config["per_processor"]')  # fmt: skip
                lines.append("    programs = min(programs, most)")
        else:
            lines.append('    block = min(block_of(N), config["elements"])')
            lines.append('    height = config["elements"] // block')
            lines.append("    programs = triton.cdiv(num_rows, height) * triton.cdiv(N, block)")
        lines += self._parts(first)
        lines.append(f"    wrap_triton({PLACE}_gradient_kernel)[(programs,)](")
        lines += [f"        {op.name}," for op in self.read]
        lines += [f"        {out.written}," for out in self.outs]
        lines += ["        num_rows,", "        N,"]
        for op in self.read:
            lines += [f"        {text}," for text in self._place_texts(op)]
        rows = 'config["rows"]' if self.has_rows else "height"
        lines += [f"        ROWS={rows},", "        BLOCK=block,"]
        lines += ["        SINGLE=block >= N,"] if self.has_rows else []
        lines += [f"        {out.needs.upper()}={out.needs}," for out in self.outs]
        lines += ['        num_warps=config["warps"],', "    )"]
        return [*lines, *self._returns()]

    def _returns(self) -> list[str]:
        returned = [self._result(out) for out in self.outs]
        if len(returned) == 1:
            return [f"    return {returned[0]}"]
        return ["    return (", *(f"        {text}," for text in returned), "    )"]

    def _launch_of_groups(self) -> list[str]:
        """Returns the lines that launch a kernel of groups."""
        x = next(op for op in self.operands if op.value.shape == self.space)
        rows = f"{x.name}.shape[0]"
        entry = "generated_gradient_rows"
        typed = self.outs[0].operand.name
        lines = launch_lines(self.read, x.name, typed, len(self.space), self.groups, entry)
        for out in self.outs:
            if out.way is not Way.WHOLE:
                is_sum = out.way is Way.ROW_PARTS
                sizes = f"{rows} * {self.groups}, 1" if is_sum else f"{rows}, {x.name}.shape[1]"
                lines += _allocated(out, sizes, x.name)
        tensors = [*(op.name for op in self.read), *(out.written for out in self.outs)]
        needs = [f"{out.needs.upper()}={out.needs}" for out in self.outs]
        return lines + call_lines(f"{PLACE}_gradient_kernel", tensors, x.name, self.groups, needs)

    def _as_rows(self) -> list[str]:
        whole = [op.name for op in self.read
                 if op.is_every_row and op.is_wide and not is_scalar(op)]  # fmt: skip
        if self.is_flat and whole:
            comma = "," if len(whole) == 1 else ""
            joined = ", ".join(whole)
            return [f"    {joined}{comma} = rows_together({joined})",
                    f"    num_rows, N = {whole[0]}.shape"]  # fmt: skip
        lines = []
        for op in self.read:
            if is_scalar(op):
                continue
            lines.append(f"    {op.name} = {as_rows(op, self.columns)}")
        return lines

    def _parts(self, first: str) -> list[str]:
        """Returns the lines that allocate what is summed after the kernel."""
        lines = []
        for out in self.outs:
            match out.way:
                case Way.COLUMN_PARTS:
                    sizes = "programs if block >= N else num_rows, N"
                case Way.PARTS:
                    sizes = "num_rows, N"
                case Way.ROW_PARTS:
                    sizes = "num_rows, 1"
                case _:
                    continue
            lines += [f"    {line}" for line in _allocated(out, sizes, first)]
        return lines

    def _result(self, out: Out) -> str:
        match out.way:
            case Way.WHOLE | Way.ROW:
                return out.name
            case Way.COLUMN_PARTS:
                return f"summed({out.written}, (), {out.name})"
            case Way.CHANNEL_PARTS:
                shape = f"{out.operand.name}.shape" if out.operand.is_every_row else "()"
                return f"summed({out.written}, {shape}, {out.name})"
            case Way.ROW_PARTS if self.groups:
                return f"summed({out.written}, (), {out.name})"
            case Way.ROW_PARTS:
                return f"summed({out.written}, {rows_text(self.columns)}, {out.name})"
            case _:
                return f"summed({out.written}, shape, {out.name})"

    def _place_texts(self, operand: Operand) -> list[str]:
        if is_scalar(operand):
            return []
        if operand.is_every_row:
            return [f"{operand.name}.stride(0)"] if operand.is_wide else []
        last = len(self.space) - self.columns
        return [
            f"size_between(shape, {start}, {stop})"
            for begin, end in operand.runs
            for start, stop in ((end, last), (begin, end))
        ]

    def operator(self) -> str:
        """Returns the statement that makes the operator."""
        return f"""{PLACE}_gradient = operator(
    "{PLACE}_gradient",
    _launch_{PLACE}_gradient,
    allocate=_allocate_{PLACE}_gradient,
    reference=reference_{PLACE}_gradient,
    kernel={PLACE}_gradient_kernel,
)"""

    def differentiated(self) -> str:
        """Returns the expression that says how the chain is differentiated."""
        operator, kernel = "None", "None"
        if self.outs:
            operator, kernel = f"{PLACE}_gradient", f"{PLACE}_gradient_kernel"
        arguments = [f"reference_{PLACE}", operator, kernel, repr(self.found.sources)]
        return "\n".join(_wrapped("ChainGradient(", arguments, ")"))

    def text(self) -> str:
        """Returns all statements; none where all gradients are handed through."""
        if not self.outs:
            return ""
        parts = (self.kernel(), self.reference(), self.allocate(), self.launch())
        return "\n\n\n".join(["\n".join(part) for part in parts] + [self.operator()])
