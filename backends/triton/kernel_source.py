"""Copies kernels into one readable file that needs torch and Triton alone."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from regraft.backends.torch.library_source import ParsedModule, names_in
from regraft.backends.triton.kernels import configs, operators

_KERNELS = "regraft.backends.triton.kernels"
_SHARED = (configs.__name__, operators.__name__)
_CONFIG_FOR = configs.config_for.__name__
_TABLE = configs.read_table.__name__
GENERATED = "generated"
_ABOUT_GENERATED = """Kernels that were generated for this model: chains of
element-wise operators and reductions over the last axis, some with a product in their middle.
Comments name each operator and where the model has it; of a kernel that is called several times,
where its first call is."""
_OF_GENERATED = (
    ("typing", "Any"), ("", "torch"), ("", "triton"), ("", "triton.language as tl"),
    ("torch", "Tensor"),
)  # fmt: skip

_NAMESPACE = r'''# PyTorch takes ASCII identifiers, folders have any name; `a.b` and `a_b` are two
NAMESPACE = re.sub(r"\W|^(?=\d)", "_", ascii(__name__)[1:-1])
if not re.fullmatch(r"(?!\d)\w+(\.\w+)?", __name__, re.ASCII):
    NAMESPACE += f"_{zlib.crc32(ascii(__name__).encode()):08x}"'''


class KernelSource:
    """The functions, kernels and operators copied so far, in the order of their definitions.

    A statement such as `softmax_forward.register_autograd(...)` comes with what it is about. The
    table of configurations is written out, for the kernels that are there.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}  # by name, or by statement
        self._homes: dict[str, str] = {}
        self._parsed: dict[str, ParsedModule] = {}
        self._imports: dict[tuple[str, str], None] = {}
        self._tables: dict[str, None] = {}

    def add(self, function: Callable[..., Any]) -> None:
        """Copies a function with all that it needs, once."""
        self._copy(self._module(function.__module__), function.__name__)
        while self._add_statements():
            pass

    def add_generated(self, name: str, source: str, needs: Mapping[str, str]) -> None:
        """Adds the source of a kernel that was written for the model.

        Args:
            name: Its name.
            source: Its statements.
            needs: Functions that it uses, by the modules that define them.
        """
        for used, module in needs.items():
            self._copy(self._module(module), used)
        self._copy(self._module(operators.__name__), operators.wrap_triton.__name__)
        self._imports.update(dict.fromkeys(_OF_GENERATED))
        self._note_tables(ast.parse(source))
        if name in self._texts:
            raise AssertionError(f"`{name}` is defined twice")
        self._texts[name], self._homes[name] = source, GENERATED

    def _module(self, name: str) -> ParsedModule:
        if name not in self._parsed:
            self._parsed[name] = ParsedModule(name)
        return self._parsed[name]

    def _copy(self, parsed: ParsedModule, name: str) -> None:
        home = self._homes.setdefault(name, parsed.name)
        if home != parsed.name:
            raise AssertionError(f"`{name}` is defined in {home} and in {parsed.name}")
        if name in self._texts:
            return
        self._texts[name] = ""  # holds its place while what it needs is copied
        if parsed.name == configs.__name__ and name == _TABLE:
            self._need(parsed, names_in(ast.parse("Table")))
            text = ""  # written last, when all kernels are known
        elif parsed.name == operators.__name__ and name == "NAMESPACE":
            self._imports.update(dict.fromkeys((("", "re"), ("", "zlib"))))
            text = _NAMESPACE
        else:
            definition = parsed.definitions[name]
            self._note_tables(definition)
            self._need(parsed, names_in(definition))
            text = parsed.source_of(definition)
        del self._texts[name]  # what it needs stands before it
        self._texts[name] = text

    def _need(self, parsed: ParsedModule, names: Iterable[str]) -> None:
        for used in names:
            if used in parsed.imports:
                module, alias = parsed.imports[used]
                if module.startswith(_KERNELS):
                    self._copy(self._module(module), alias.name)
                else:
                    spelled = alias.name if alias.asname is None else f"{alias.name} as {used}"
                    self._imports.setdefault((module, spelled))
            elif used in parsed.definitions:
                self._copy(parsed, used)

    def _note_tables(self, definition: ast.AST) -> None:
        """Notes for which kernels a definition asks for a configuration."""
        for node in ast.walk(definition):
            match node:
                case ast.Call(func=ast.Name(id=called), args=[ast.Constant(value=str(kernel)), *_]):
                    if called == _CONFIG_FOR:
                        self._tables.setdefault(kernel)

    def _add_statements(self) -> bool:
        """Adds statements about names that were copied; returns whether there were new ones."""
        is_new = False
        for parsed in list(self._parsed.values()):
            for subject, statement in parsed.statements:
                key = f"{parsed.name}:{statement.lineno}"
                if subject in self._texts and key not in self._texts:
                    self._texts[key] = ""
                    self._need(parsed, names_in(statement))
                    del self._texts[key]
                    self._texts[key] = parsed.source_of(statement)
                    self._homes[key] = parsed.name
                    is_new = True
        return is_new

    def text(self, header: Sequence[str]) -> str:
        """Returns the file; `header` are the lines of its docstring."""
        lines = ['"""' + "\n".join(header) + '\n"""', "", "from __future__ import annotations", ""]
        text = "\n".join(lines + self._import_lines())
        introduced: set[str] = set()
        shared = [key for key in self._texts if self._homes[key] in _SHARED]
        is_short = False
        for key in [*shared, *(key for key in self._texts if key not in shared)]:
            home = self._homes[key]
            about = ""
            if home not in introduced:
                introduced.add(home)
                known = self._parsed.get(home)
                about = _comment(_ABOUT_GENERATED if known is None else known.docstring)
            block = about + (self._table_text() if key == _TABLE else self._texts[key])
            gap = "\n" if is_short and "\n" not in block else "\n\n\n"
            gap = "\n\n" if about and len(introduced) == 1 else gap  # behind the imports
            text += gap + block
            is_short = "\n" not in block.removeprefix(about)
        return text + "\n"

    def _import_lines(self) -> list[str]:
        named: dict[str, list[str]] = {}
        for module, name in self._imports:
            named.setdefault(module, []).append(name)
        plain = [f"import {name}" for name in sorted(named.pop("", ()))]
        lines = plain + [f"from {m} import {', '.join(sorted(named[m]))}" for m in sorted(named)]
        standard = [line for line in lines if line.split()[1].partition(".")[0] not in _PEERS]
        return [*standard, "", *(line for line in lines if line not in standard)]

    def _table_text(self) -> str:
        table = configs.read_table()
        rows: list[str] = []
        for kernel in self._tables:
            rows.append(f"    {json.dumps(kernel)}: {{")
            for device, dtypes in table[kernel].items():
                rows.append(f"        {json.dumps(device)}: {{")
                for dtype, buckets in dtypes.items():
                    rows.append(f"            {json.dumps(dtype)}: [")
                    rows += [f"                {json.dumps(bucket)}," for bucket in buckets]
                    rows.append("            ],")
                rows.append("        },")
            rows.append("    },")
        table_text = "\n".join(["CONFIGS: Table = {", *rows, "}"])
        return (
            f'{table_text}\n"""Kernel -> device -> dtype -> configurations by the greatest size."""'
            f"\n\n\ndef {_TABLE}() -> Table:\n"
            '    """Returns the table of launch configurations."""\n    return CONFIGS'
        )


_PEERS = frozenset({"torch", "triton"})


def _comment(docstring: str) -> str:
    """Returns what a file of kernels says about itself, as a comment."""
    rule = f"# {'-' * 97}\n"
    body = "".join(f"# {line}".rstrip() + "\n" for line in docstring.strip().splitlines())
    return f"{rule}{body}{rule}\n\n"
