"""Parses the text form.

Types in the text are claims: every node is inferred again, a contradiction is an error, and where
inference knows less, or says the same otherwise, the text's type stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from regraft.ir.attr_kinds import fits_kind
from regraft.ir.constants import literal, weight
from regraft.ir.dims import Dim, Symbol, symbols_of
from regraft.ir.errors import TypeInferenceError
from regraft.ir.graph import Graph, Node, Scope, Value
from regraft.ir.module import Module, State, StateKind
from regraft.ir.node_rules import form_findings
from regraft.ir.ops import OPS
from regraft.ir.opspec import AttrKind, OpSpec, Trait
from regraft.ir.reinfer import contradicts
from regraft.ir.text.lexer import Scanner
from regraft.ir.text.types import SYMBOL, TypeScanner
from regraft.ir.text.values import scan_array_of, scan_value
from regraft.ir.text.weights import WeightParser
from regraft.ir.types import Type
from regraft.ir.weights import WeightStore

_WEIGHT_WORDS = frozenset(("source", "weight", "alias"))
_Names = dict[str | int, Value]


def parse_module(
    text: str,
    *,
    weights: WeightStore | None = None,
    base: Path | None = None,
    ops: Mapping[str, OpSpec] = OPS,
) -> Module:
    """Returns the module that a text describes.

    A symbol that first appears in the type of a graph input need not be declared.

    Args:
        text: The text form.
        weights: Tensors for the weights that the text only names.
        base: Folder to which file names are relative.
        ops: The operators by name.

    Raises:
        ParseError: With line, column and what was expected.
        TypeInferenceError: When an operator forbids its operands; a note tells the line.
    """
    return _Parser(text, weights, base, ops).module()


def parse_graph(text: str, *, ops: Mapping[str, OpSpec] = OPS) -> Graph:
    """Returns the graph of a text; the header may be left out."""
    return parse_module(text, ops=ops).graph


class _Parser:
    __slots__ = ("declaring", "ops", "s", "scope", "types", "weights")

    def __init__(
        self,
        text: str,
        weights: WeightStore | None,
        base: Path | None,
        ops: Mapping[str, OpSpec],
    ) -> None:
        self.s = Scanner(text)
        self.scope = Scope()
        self.ops = ops
        self.declaring = False
        self.types = TypeScanner(self._symbol)
        self.weights = WeightParser(self.scope, self.types, weights, base)

    def _symbol(self, name: str) -> Symbol | None:
        found = self.scope.symbols.get(name)
        if found is None and self.declaring:
            return self.scope.symbol(name)
        return found

    # -- header -----------------------------------------------------------------------------

    def module(self) -> Module:
        s = self.s
        module = Module(Graph(self.scope))
        states: list[State] = []
        if s.take_word("module"):
            module.name = s.string()
        while not s.peek("graph"):
            start, word = s.pos, s.expect_word("a header line or `graph`")
            if word in _WEIGHT_WORDS:
                self.weights.line(s, word)
            elif word == "symbol":
                self._symbol_line()
            elif word == "meta":
                key = s.string()
                s.expect("=")
                module.meta[key] = scan_value(s, self.types)
            elif word == "level":
                module.level = s.string()
            elif word == "trainable":
                self.scope.weights.trainable = True
            elif word == "assume":
                left = self.types.dim(s)
                s.expect("==")
                self.scope.assume_equal(left, self.types.dim(s), s.string())
            elif word == "state":
                states.append(self._state_line())
            else:
                raise s.error(f"expected a header line or `graph`, found `{word}`", at=start)
        module.states = tuple(states)
        declared = set(self.scope.symbols)
        s.expect("graph")
        self._graph(module.graph, top=True)
        if not s.at_end():
            raise s.error(f"expected the end of the text, found {s.found()}")
        self._forget_unused(module.graph, declared)
        return module

    def _symbol_line(self) -> None:
        s = self.s
        start = s.pos
        match = s.match(SYMBOL)
        if match is None:
            raise s.error(f"expected the name of a symbol, found {s.found()}")
        name = match[1] or match[2]
        if name in self.scope.symbols:
            raise s.error(f"symbol `{name}` is declared twice", at=start)
        facts: dict[str, Any] = {}
        while True:
            for fact in ("lo", "hi", "multiple_of"):
                if s.take(f"{fact}="):
                    facts[fact] = s.integer("an integer")
                    break
            else:
                break
        self.scope.symbol(name, defined=s.take_word("defined"), **facts)

    def _state_line(self) -> State:
        s = self.s
        name = s.string()
        start, word = s.pos, s.expect_word("the kind of a state")
        if word not in {kind.value for kind in StateKind}:
            kinds = ", ".join(kind.value for kind in StateKind)
            raise s.error(f"`{word}` is no kind of state", at=start, hint=f"one of {kinds}")
        source = s.string()
        s.expect("->")
        return State(name, source, s.string(), StateKind(word))

    def _forget_unused(self, graph: Graph, declared: set[str]) -> None:
        """Drops symbols that inference made for axes where the text's type stayed."""
        made = [name for name in self.scope.symbols if name not in declared]
        if not made:
            return
        used = {symbol.name for symbol in _symbols_in(graph)}
        for name in made:
            if name not in used:
                del self.scope.symbols[name]

    # -- graphs -----------------------------------------------------------------------------

    def _graph(
        self, graph: Graph, *, top: bool = False, captured: Sequence[Value | None] = ()
    ) -> None:
        s = self.s
        names: _Names = {}
        s.expect("(", "and the inputs of the graph")
        self.declaring = top
        while not s.take(")"):
            if graph.inputs:
                s.expect(",")
            start, name = s.pos, s.value_name()
            s.expect(":", "and the type of the input")
            value = graph.add_input(name if isinstance(name, str) else None, self.types.type(s))
            self._define(names, name, value, start)
        self.declaring = False
        for value, outer in zip(reversed(graph.inputs), reversed(captured), strict=False):
            value.content = None if outer is None else outer.content
        s.expect("{")
        while not s.peek("return"):
            self._node(graph, names)
        s.expect("return")
        while not s.peek("}"):
            if graph.outputs:
                s.expect(",")
            start, reference = s.pos, s.value_name()
            value = self._resolve(names, reference, start)
            if s.take_word("as"):
                graph.add_output(s.name("%", "the name of an output"), value)
            elif isinstance(reference, str):
                graph.add_output(reference, value)
            else:
                raise s.error("an anonymous output needs a name: `%0 as %name`", at=start)
        s.expect("}")

    def _define(self, names: _Names, name: str | int, value: Value, start: int) -> None:
        if name in names:
            raise self.s.error(f"value `%{name}` is defined twice", at=start)
        names[name] = value
        value.name = name if isinstance(name, str) else None

    def _resolve(self, names: _Names, name: str | int, start: int) -> Value:
        value = names.get(name)
        if value is None:
            close = get_close_matches(str(name), [str(known) for known in names], 1)
            hint = f"did you mean `%{close[0]}`?" if close else "define it above its first use"
            raise self.s.error(f"value `%{name}` is not defined here", at=start, hint=hint)
        return value

    def _node(self, graph: Graph, names: _Names) -> None:
        s = self.s
        start = s.pos
        results = [(start, s.value_name())]
        while s.take(","):
            results.append((s.pos, s.value_name()))
        s.expect("=")
        op_at, word = s.pos, s.expect_dotted("an operator")
        spec = self.ops.get(word)
        if spec is None:
            close = get_close_matches(word, self.ops, 1)
            hint = f"did you mean `{close[0]}`?" if close else None
            raise s.error(f"unknown operator `{word}`", at=op_at, hint=hint)
        inputs: list[Value | None] = []
        bodies: list[Graph] = []
        if spec is literal:
            type_at, type_ = s.pos, self.types.type(s)
            attrs: dict[str, Any] = {"value": scan_array_of(s, type_, type_at)}
        elif spec is weight:
            attrs = {"name": s.name("@", "a weight")}
        else:
            inputs = self._operands(names)
            attrs = self._attrs(spec)
            while s.take_word("body"):
                body = Graph(self.scope)
                num_captures = attrs.get("num_captures", 0) if Trait.CAPTURES in spec.traits else 0
                self._graph(body, captured=inputs[len(inputs) - num_captures :])
                bodies.append(body)
        types = self._types(len(results), start)
        loc = s.trailing_comment()
        try:
            node = graph.create(
                spec, inputs, attrs,
                num_outputs=len(results), bodies=tuple(bodies), loc=loc, infer=False,
            )  # fmt: skip
            for value, type_ in zip(node.outputs, types or (), strict=False):
                value.type = type_
            for code, message, hint in form_findings(node):
                raise s.error(f"{code}: {message}", at=start, hint=hint)
            node.infer()
        except TypeInferenceError as error:
            error.add_note(str(s.error("in this node", at=start)))
            raise
        if types is not None:
            self._keep_claims(node, types, start)
        for (at, name), value in zip(results, node.outputs, strict=True):
            self._define(names, name, value, at)

    def _operands(self, names: _Names) -> list[Value | None]:
        s = self.s
        inputs: list[Value | None] = []
        s.expect("(", "and the operands")
        while not s.take(")"):
            if inputs:
                s.expect(",")
            start = s.pos
            if s.take("_"):
                inputs.append(None)
            else:
                inputs.append(self._resolve(names, s.value_name(), start))
        return inputs

    def _attrs(self, spec: OpSpec) -> dict[str, Any]:
        s = self.s
        attrs: dict[str, Any] = {}
        if not s.take("{"):
            return attrs
        while not s.take("}"):
            if attrs:
                s.expect(",")
            start, name = s.pos, s.expect_word("an attribute")
            attr = spec.all_attrs.get(name)
            if attr is None or name in attrs:
                problem = "is given twice" if name in attrs else "is unknown"
                hint = f"it has {', '.join(spec.all_attrs) or 'no attributes'}"
                raise s.error(f"{spec.name}: attribute `{name}` {problem}", at=start, hint=hint)
            s.expect("=")
            value = scan_value(s, self.types, attr.kind)
            if type(value) is int and attr.kind is AttrKind.FLOAT:
                value = float(value)
            if value is not None and not fits_kind(value, attr.kind):
                raise s.error(f"{spec.name}: `{name}` is not of kind {attr.kind.value}", at=start)
            attrs[name] = value
        return attrs

    def _types(self, num_results: int, start: int) -> list[Type] | None:
        s = self.s
        if not s.take(":"):
            return None
        types = [self.types.type(s)]
        while s.take(","):
            types.append(self.types.type(s))
        if len(types) != num_results:
            raise s.error(f"{num_results} results have {len(types)} types", at=start)
        return types

    def _keep_claims(self, node: Node, types: list[Type], start: int) -> None:
        for value, declared in zip(node.outputs, types, strict=True):
            if value.type != declared:
                if contradicts(declared, value.type):
                    raise self.s.error(
                        f"{node.op.name}: the result is declared {declared}, "
                        f"but inference says {value.type}",
                        at=start,
                    )
                value.type = declared


def _symbols_in(graph: Graph) -> set[Symbol]:
    values = list(graph.inputs)
    for node in graph.walk():
        values += node.outputs
        for body in node.bodies:
            values += body.inputs
    found: set[Symbol] = set()
    for value in values:
        content = value.content if isinstance(value.content, tuple) else (value.content,)
        dims = (*(value.shape or ()), *content)
        found.update(symbols_of(dim for dim in dims if isinstance(dim, Dim)))
    return found
