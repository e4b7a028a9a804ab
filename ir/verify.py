"""Checks that IR keeps its rules; reports all problems at once.

| code | rule |
|---|---|
| V001 | an operand is defined before its use, in the same graph |
| V002 | every use stands in the value's use list, and every entry there is a use |
| V003 | operands and results fit the operator's slots |
| V004 | a required operand is present |
| V005 | an *either* parameter is an operand or an attribute, not both, and not neither |
| V006 | attributes are those of the operator and of their kinds |
| V007 | bodies: their number, and one input of a fitting type per capture |
| V008 | graph outputs are defined in the graph; one name means one value |
| V009 | a weight exists and has the recorded type |
| V010 | every symbol is the scope's |
| V011 | graph inputs have distinct names and know their graph and position |
| V012 | links, order labels and counts of the node list agree |
| V013 | inference gives the recorded type and content (level `full`) |
| V014 | inference accepts the operands (level `full`) |
| V015 | states name inputs and outputs of the graph |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from regraft.ir.errors import VerifyError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.node_rules import form_findings, place_findings, symbol_findings, use_findings
from regraft.ir.reinfer import Finding, reinfer_findings
from regraft.ir.text.printer import print_node

Level = Literal["structure", "full"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule.

    Args:
        code: `V001`, … (the table above).
        where: The node or graph, in one line.
        message: What is wrong.
        hint: What to do, or None.
    """

    code: str
    where: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}\n  at {self.where}"
        return text if self.hint is None else f"{text}\n  hint: {self.hint}"


def verify(
    module: Module, level: Level = "structure", nodes: Iterable[Node] | None = None
) -> list[Problem]:
    """Returns every broken rule; changes nothing.

    Args:
        module: The module.
        level: `structure`, or `full` for inference as well.
        nodes: Only these nodes and what they use (erased ones are skipped); None checks all.

    Cost: O(nodes checked); `full` about as much as inferring them.
    """
    problems: list[Problem] = []
    if nodes is None:
        problems += _module(module)
        nodes = list(module.graph.walk())
    nodes = [node for node in nodes if node.graph is not None]
    for node in nodes:
        findings = [*place_findings(node), *form_findings(node)]
        if findings:
            problems += _problems(findings, print_node(node))
    if level == "full" and not problems:
        # inference reads operands, attributes and weights: it needs them to be right
        for node in nodes:
            findings = list(reinfer_findings(node))
            if findings:
                problems += _problems(findings, print_node(node))
    return problems


def _problems(findings: Iterable[Finding], where: str) -> list[Problem]:
    return [Problem(code, where, message, hint) for code, message, hint in findings]


def check(module: Module, level: Level = "structure", nodes: Iterable[Node] | None = None) -> None:
    """Raises when a rule is broken; see `verify`.

    Raises:
        VerifyError: Listing all problems.
    """
    problems = verify(module, level, nodes)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise VerifyError("\n".join([f"the IR has {count}", *map(str, problems)]))


def _module(module: Module) -> Iterator[Problem]:
    inputs = [value.name for value in module.graph.inputs]
    outputs = module.graph.output_names
    for state in module.states:
        gone = [] if state.input in inputs else [f"input `{state.input}`"]
        gone += [] if state.output in outputs else [f"output `{state.output}`"]
        for end in gone:
            message = f"state `{state.name}` names {end}, which does not exist"
            yield Problem("V015", f"module `{module.name}`", message)
    where = f"inputs of graph `{module.name}`"
    for idx, name in enumerate(inputs):
        if name is None:
            yield Problem("V011", where, f"input {idx} has no name")
        elif name in inputs[:idx]:
            yield Problem("V011", where, f"two inputs are named `{name}`")
    yield from _graph(module.graph, f"graph `{module.name}`")
    for node in module.graph.walk():
        for idx, body in enumerate(node.bodies):
            yield from _graph(body, f"body {idx} of {print_node(node)}")


def _graph(graph: Graph, where: str) -> Iterator[Problem]:
    for idx, value in enumerate(graph.inputs):
        if value.graph is not graph or value.index != idx or value.producer is not None:
            yield Problem("V011", where, f"input {idx} does not know its graph and position")
        yield from _problems([*use_findings(value), *symbol_findings(value, graph)], where)
    yield from _links(graph, where)
    named: dict[str, Value] = {}
    for name, value in zip(graph.output_names, graph.outputs, strict=False):
        # runtimes return a value as often as it is listed, under the same name
        if named.setdefault(name, value) is not value:
            yield Problem("V008", where, f"two outputs are named `{name}`")
    if len(graph.output_names) != len(graph.outputs):
        message = f"{len(graph.outputs)} outputs have {len(graph.output_names)} names"
        yield Problem("V008", where, message)
    for idx, value in enumerate(graph.outputs):
        if value.owner is not graph:
            yield Problem("V008", where, f"output {idx} {value!r} is not defined in this graph")
        if (graph, idx) not in value.uses:
            yield Problem("V002", where, f"output {idx} is no entry of the use list of {value!r}")


def _links(graph: Graph, where: str) -> Iterator[Problem]:
    count, prev, order = 0, None, None
    node = graph.first
    while node is not None:
        count += 1
        if node.prev is not prev or node.graph is not graph:
            yield Problem("V012", where, f"broken link before {print_node(node)}")
            return
        if order is not None and node.order <= order:
            yield Problem("V012", where, f"order label not above its predecessor: {node!r}")
        if count > graph.num_nodes:
            break
        prev, order, node = node, node.order, node.next
    if count != graph.num_nodes or graph.last is not prev:
        yield Problem(
            "V012", where, f"the graph counts {graph.num_nodes} nodes, {count} are linked"
        )
