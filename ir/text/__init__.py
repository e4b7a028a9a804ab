"""The text form `.rg`: `parse_module(print_module(m))` prints the same text again."""

from regraft.ir.text.files import read_module, write_module
from regraft.ir.text.parser import parse_graph, parse_module
from regraft.ir.text.printer import print_module, print_node

__all__ = [
    "parse_graph",
    "parse_module",
    "print_module",
    "print_node",
    "read_module",
    "write_module",
]
