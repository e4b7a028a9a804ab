"""Which ONNX operators may be opaque: exactly those of `opaque_allowed.toml`."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from regraft.frontends.onnx.importer import ImportTable
from regraft.frontends.onnx.ops import FAMILIES
from tests.conformance.cases import node_cases

ALLOWED = {
    ("" if domain == "ai.onnx" else domain, op_type): reason
    for domain, entries in tomllib.loads(
        Path(__file__).with_name("opaque_allowed.toml").read_text()
    ).items()
    for op_type, reason in entries.items()
}
TABLE = ImportTable(*FAMILIES)


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attr in node.attribute:
            if attr.HasField("g"):
                yield from walk(attr.g)


@pytest.fixture(scope="module")
def suite_operators() -> set[tuple[str, str]]:
    return {
        ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        for case in node_cases()
        for node in walk(case.proto.graph)
    }


def test_every_operator_of_the_node_suite_is_imported_or_listed(suite_operators):
    missing = {key for key in suite_operators if key not in TABLE and key not in ALLOWED}
    assert not missing, f"neither an importer nor a reason to be opaque: {sorted(missing)}"


def test_every_standard_operator_is_imported_or_listed():
    schemas = {
        (schema.domain, schema.name)
        for schema in onnx.defs.get_all_schemas()
        if not schema.deprecated
    }
    assert len(schemas) > 200
    missing = {key for key in schemas if key not in TABLE and key not in ALLOWED}
    assert not missing, f"neither an importer nor a reason to be opaque: {sorted(missing)}"


def test_no_listed_operator_has_an_importer():
    both = [key for key in ALLOWED if key in TABLE]
    assert not both, f"imported, so that the entry in opaque_allowed.toml is stale: {both}"


def test_every_entry_gives_a_reason():
    assert [key for key, reason in ALLOWED.items() if len(reason.split()) < 4] == []
