"""Self-contained pages: the report of a conversion, `inspect --html`, `bench --html`, plots."""

from regraft.report_html.graph_view import GraphView, view_of
from regraft.report_html.pages import (
    audit_page,
    bench_page,
    can_render,
    inspect_page,
    lines_page,
    report_page,
)

__all__ = [
    "GraphView",
    "audit_page",
    "bench_page",
    "can_render",
    "inspect_page",
    "lines_page",
    "report_page",
    "view_of",
]
