"""Reads and writes case files.

```
// pass: canonicalize{max-bytes=64}      the pipeline; without it the case is about the text form
// error: V008                           the case must be refused with a message that holds this
graph(…) {…}                             the input
// ----                                  without it the output must equal the input
graph(…) {…}                             the expected output
```
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HEADER = re.compile(r"// (pass|error|about): (.*)\n")
DIVIDER = "// ----\n"


@dataclass(frozen=True)
class CaseFile:
    """One case.

    Attributes:
        path: The file.
        header: Its header lines, as they stand; comments to the parser.
        pipeline: Passes to run, or None.
        error: What the refusal must say, or None.
        source: The input text.
        expected: The expected text, or None when the input must stay as it is.
    """

    path: Path
    header: str
    pipeline: str | None
    error: str | None
    source: str
    expected: str | None

    @staticmethod
    def read(path: Path) -> CaseFile:
        """Reads a case; an unknown header key is an error.

        Raises:
            ValueError: When the file has two dividers or an error case has an output.
        """
        text = path.read_text()
        options: dict[str, str] = {}
        pos = 0
        while match := _HEADER.match(text, pos):
            options[match[1]] = match[2].strip()
            pos = match.end()
        source, *rest = text[pos:].split(DIVIDER)
        if len(rest) > 1 or (rest and "error" in options):
            raise ValueError(f"{path}: one divider at most, and none when an error is expected")
        return CaseFile(
            path, text[:pos], options.get("pass"), options.get("error"), source,
            rest[0] if rest else None,
        )  # fmt: skip

    def rewrite(self, output: str | None) -> None:
        """Writes the file with another expectation; None: the input stays as it is."""
        tail = "" if output is None else f"\n{DIVIDER}{output}"
        self.path.write_text(f"{self.header}{self.source.rstrip()}\n{tail}")
