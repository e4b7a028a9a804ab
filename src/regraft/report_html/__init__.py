"""Self-contained pages: the report of a conversion and `inspect --html`. Nothing is fetched."""

from regraft.report_html.graph_view import GraphView, view_of
from regraft.report_html.pages import can_render, inspect_page, report_page

__all__ = ["GraphView", "can_render", "inspect_page", "report_page", "view_of"]
