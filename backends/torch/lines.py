"""Lines of a function body under construction: indentation, lines put in later, dead variables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_KEEP_FOR = 24
"""A dead variable that is assigned again within so many lines needs no `del`."""


@dataclass(slots=True, eq=False)
class Line:
    """One line, with those that later turned out to be needed right after it.

    A line without text is only a place.
    """

    depth: int
    text: str | None
    after: list[str] = field(default_factory=list)
    assigns: tuple[str, ...] = ()
    dead: list[str] = field(default_factory=list)


class Lines:
    """The lines of a function, in order."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self.depth = 0

    def add(self, text: str, *assigns: str) -> Line:
        """Appends a line that assigns the given variables."""
        line = Line(self.depth, text, assigns=assigns)
        self._lines.append(line)
        return line

    @property
    def is_begun(self) -> bool:
        """Whether a line has text so far."""
        return any(line.text is not None or line.after for line in self._lines)

    def anchor(self) -> Line:
        """Returns a line of the current block after which more can be put in later."""
        last = self._lines[-1] if self._lines else None
        if last is not None and last.depth == self.depth and not (last.text or "").endswith(":"):
            return last
        line = Line(self.depth, None)
        self._lines.append(line)
        return line

    def take_last(self, name: str) -> str:
        """Returns what the last line assigns to a variable, and removes it; else the variable.

        A line that others were put in after stays.
        """
        last = self._lines[-1] if self._lines else None
        start = f"{name} = "
        if last is None or last.depth or last.after or not (last.text or "").startswith(start):
            return name
        self._lines.pop()
        return (last.text or "").removeprefix(start)

    def note_dead(self, name: str) -> None:
        """Notes that a variable is not read any more after the last line."""
        if self._lines:
            self._lines[-1].dead.append(name)

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Lines added within are those of a block; an empty block gets `pass`."""
        before = len(self._lines)
        self.depth += 1
        try:
            yield
        finally:
            if all(line.text is None for line in self._lines[before:]):
                self.add("pass")
            self.depth -= 1

    def render(self, indent: int, *, is_short: bool = False) -> str:
        """Returns the text.

        Args:
            indent: Levels of indentation.
            is_short: Whether the function ends so soon that nothing needs a `del` before.
        """
        if not is_short:
            self._free_dead()
        out = []
        for line in self._lines:
            margin = "    " * (line.depth + indent)
            if line.text is not None:
                out.append(f"{margin}{line.text}" if line.text else "")
            out += [f"{margin}{text}" for text in line.after]
        return "\n".join(out)

    def _free_dead(self) -> None:
        assigned: dict[str, int] = {}
        last = len(self._lines)
        for idx in range(last - 1, -1, -1):
            line = self._lines[idx]
            if line.depth == 0:
                until = {name: assigned.get(name, last) for name in line.dead}
                names = [name for name, next_idx in until.items() if next_idx - idx > _KEEP_FOR]
                if names:
                    line.after.append(f"del {', '.join(names)}")
            assigned.update(dict.fromkeys(line.assigns, idx))
