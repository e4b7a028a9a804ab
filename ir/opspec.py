"""What an operator is: one frozen `OpSpec` per operator, the single home of its facts.

An `OpSpec` says which operands and attributes an operator has, how types follow from operands,
what it computes (numpy), how its axes correspond, and optionally a body of simpler operators.
Emitters, samples and policies live elsewhere and are keyed by the spec object.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.ir.builder import Builder
    from regraft.ir.dims import DimLike
    from regraft.ir.graph import Node, Value
    from regraft.ir.types import Type


class Trait(enum.Flag):
    """Facts about an operator that more than one part of the compiler reads."""

    NONE = 0
    PURE = enum.auto()
    """The result depends on operands and attributes only; equal calls may be merged."""
    COMMUTATIVE = enum.auto()
    """The first two operands may be exchanged."""
    ELEMENTWISE = enum.auto()
    """Each result element depends on the operand elements at its (broadcast) position."""
    DATA_MOVEMENT = enum.auto()
    """Result elements are copies of operand elements; any element type, never rounded."""
    RAW = enum.auto()
    """`eval` receives arrays in their declared element type instead of widened floats."""
    CAPTURES = enum.auto()
    """Trailing operands are outer values that the bodies capture."""
    CONSTANT = enum.auto()
    """Produces a constant: `literal` or `weight`."""
    DISCRETE = enum.auto()
    """A small change of an operand may change the result by a jump (top-k, rounding, arg-max)."""


class AttrKind(enum.Enum):
    """The kind of an attribute's value."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    STR = "str"
    INTS = "ints"
    FLOATS = "floats"
    STRS = "strs"
    DIM = "dim"
    DIMS = "dims"
    DTYPE = "dtype"
    ARRAY = "array"
    TYPE = "type"
    ANY = "any"


class _Required(enum.Enum):
    REQUIRED = "required"

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required.REQUIRED


@dataclass(frozen=True, slots=True)
class Attr:
    """A static parameter; `default=REQUIRED` means that it must be given."""

    name: str
    kind: AttrKind
    default: Any = REQUIRED


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand slot.

    Args:
        name: Its name in the text form of errors and in `node.operand(name)`.
        optional: It may be absent (None).
        variadic: Zero or more values; only the last slot.
        either: The kind of the attribute of the same name that may stand in for the operand;
            exactly one of the two is set, unless the slot is optional too.
    """

    name: str
    optional: bool = False
    variadic: bool = False
    either: AttrKind | None = None


Content = "DimLike | tuple[DimLike, ...]"

Infer = Callable[["Node"], "Type | Sequence[Type]"]
Eval = Callable[..., Any]  # (EvalContext, *arrays) -> array | tuple of arrays
ContentOf = Callable[
    ["Node"],
    "DimLike | tuple[DimLike, ...] | list[DimLike | tuple[DimLike, ...] | None] | None",
]
Axes = "str | Callable[[Node], AxisRule | str | None] | None"
Flops = Callable[["Node"], "DimLike | None"]
Body = Callable[["Node", "Builder"], "Value | Sequence[Value]"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OpSpec:
    """One operator.

    Args:
        name: snake_case, unique; the field's or ONNX's term.
        source: Where the semantics are defined, such as `ONNX Softmax-13`.
        operands: Operand slots in order; a variadic slot is the last.
        results: Names of the results; a last name ending in `*` is variadic, one ending in `?`
            may be absent.
        attrs: Static parameters, besides those that `either` operands imply.
        traits: Facts that several parts of the compiler read.
        axes: The axis rule (see `regraft.ir.axes`), a function of the node giving it, or None:
            every axis of every operand and result is then pinned.
        counts: Attributes that state sizes of the rule's labels, each with the term (axis notation)
            whose sizes it holds: `{"groups": "g"}`, `{"shape": "->"}` (the first result's axes).
            They bind the rule like one more operand, and dropping positions of a label rewrites
            them.
        infer: Result types from operands. None: derived from the axis rule, element type of the
            first operand.
        eval: Numpy meaning: `eval(context, *operands)` returns the result(s); floats arrive
            widened to f32 (f64 for an oracle) unless the operator is RAW or DATA_MOVEMENT.
        content: Symbolic content of a small integer result (scalar or 1-d), for shape arithmetic;
            a list gives one per result.
        flops: Floating-point operations; None: derived from the rule (2 x contraction volume).
        body: The same meaning in simpler operators, generic in rank and dims.
        num_bodies: Number of body graphs (control flow).
    """

    name: str
    source: str
    operands: tuple[Operand, ...] = ()
    results: tuple[str, ...] = ("out",)
    attrs: tuple[Attr, ...] = ()
    traits: Trait = Trait.PURE
    axes: Any = None
    counts: Mapping[str, str] = field(default_factory=dict)
    infer: Infer | None = None
    eval: Eval | None = None
    content: ContentOf | None = None
    flops: Flops | None = None
    body: Body | None = None
    num_bodies: int = 0
    all_attrs: dict[str, Attr] = field(init=False, repr=False)
    operand_idx: dict[str, int] = field(init=False, repr=False)
    defaults: dict[str, Any] = field(init=False, repr=False)
    num_results: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        attrs = {attr.name: attr for attr in self.attrs}
        for operand in self.operands:
            if operand.either is not None:
                attrs[operand.name] = Attr(operand.name, operand.either, None)
        object.__setattr__(self, "all_attrs", attrs)
        always = sum(not name.endswith(("*", "?")) for name in self.results)
        object.__setattr__(self, "num_results", always)
        object.__setattr__(self, "operand_idx", {o.name: i for i, o in enumerate(self.operands)})
        object.__setattr__(
            self,
            "defaults",
            {name: attr.default for name, attr in attrs.items() if attr.default is not REQUIRED},
        )

    @property
    def is_pure(self) -> bool:
        """Whether equal calls give equal results and an unused call may be dropped."""
        return Trait.PURE in self.traits

    @property
    def is_variadic(self) -> bool:
        """Whether the last operand slot takes any number of values."""
        return bool(self.operands) and self.operands[-1].variadic

    def __repr__(self) -> str:
        return f"<op {self.name}>"
