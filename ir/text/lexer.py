"""The scanner of the text form: matches tokens at a position and reports errors by line and column.

The parser asks for the token that the grammar expects (scannerless recursive descent), so there is
no token list; one regular expression match per token keeps ten thousand nodes under two seconds.
"""

from __future__ import annotations

import json
import re

from regraft.ir.errors import ParseError

# Space and comments between tokens. A comment that follows a node on its line is the node's origin:
# the parser reads it with `trailing_comment` before it skips anything.
_SKIP = re.compile(r"(?:[ \t\r\n]+|//[^\n]*)*")
_COMMENT = re.compile(r"[ \t]*//[ ]?([^\n]*)")
IDENTIFIER = re.compile(r"[^\W\d][\w.]*")
_WORD = re.compile(r"[^\W\d][\w]*")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_BLOB = re.compile(r'x"([0-9a-f]*)"')
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)")
_INT = re.compile(r"-?\d+")
_NUMBERED = re.compile(r"%(\d+)")
_LOC_ENTRY = re.compile(r'"(?:[^"\\\n]|\\.)*"|[^",]+')


class Scanner:
    """A position in a text.

    Attributes:
        text: The whole text.
        pos: Where the next token starts.
        end: Where the last token ended, before the space and comments after it.
    """

    __slots__ = ("end", "pos", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.end = 0
        self.skip()

    def skip(self) -> None:
        """Skips space and comments."""
        self.end = self.pos
        match = _SKIP.match(self.text, self.pos)
        if match is not None:
            self.pos = match.end()

    def at_end(self) -> bool:
        """Returns whether nothing is left."""
        return self.pos == len(self.text)

    def peek(self, token: str | tuple[str, ...]) -> bool:
        """Returns whether the text goes on with `token` (or one of them)."""
        return self.text.startswith(token, self.pos)

    def take(self, token: str) -> bool:
        """Consumes `token` when the text goes on with it."""
        if not self.text.startswith(token, self.pos):
            return False
        self.pos += len(token)
        self.skip()
        return True

    def expect(self, token: str, what: str = "") -> None:
        """Consumes `token`.

        Raises:
            ParseError: When the text goes on with something else.
        """
        if not self.take(token):
            raise self.error(f"expected `{token}`{what and f' {what}'}, found {self.found()}")

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Consumes and returns a match of `pattern` at the position, or None."""
        match = pattern.match(self.text, self.pos)
        if match is not None:
            self.pos = match.end()
            self.skip()
        return match

    def word(self) -> str | None:
        """Consumes an identifier without dots, or returns None."""
        match = self.match(_WORD)
        return None if match is None else match[0]

    def peek_word(self) -> str:
        """Returns the identifier at the position ("" when there is none)."""
        match = _WORD.match(self.text, self.pos)
        return "" if match is None else match[0]

    def expect_word(self, what: str) -> str:
        """Consumes an identifier.

        Raises:
            ParseError: When there is none.
        """
        word = self.word()
        if word is None:
            raise self.error(f"expected {what}, found {self.found()}")
        return word

    def expect_dotted(self, what: str) -> str:
        """Consumes an identifier that may hold dots: an operator, with its namespace.

        Raises:
            ParseError: When there is none.
        """
        match = self.match(IDENTIFIER)
        if match is None:
            raise self.error(f"expected {what}, found {self.found()}")
        return match[0]

    def take_word(self, word: str) -> bool:
        """Consumes the identifier `word` when it is the next one."""
        if self.peek_word() != word:
            return False
        self.word()
        return True

    def string(self) -> str:
        """Consumes a quoted string.

        Raises:
            ParseError: When there is none or an escape is unknown.
        """
        start = self.pos
        match = self.match(_STRING)
        if match is None:
            raise self.error(f"expected a string in double quotes, found {self.found()}")
        return self._unquote(match[0], start)

    def blob(self) -> bytes | None:
        """Consumes a hexadecimal blob `x"00ff"`, or returns None."""
        match = self.match(_BLOB)
        if match is None:
            return None
        if len(match[1]) % 2:
            raise self.error("a blob has two hexadecimal digits per byte")
        return bytes.fromhex(match[1])

    def name(self, sigil: str, what: str) -> str:
        """Consumes `%name`, `@name` or the quoted forms `%"any/text"`.

        Raises:
            ParseError: When there is none.
        """
        start = self.pos
        if not self.text.startswith(sigil, start):
            raise self.error(f"expected {what} `{sigil}…`, found {self.found()}")
        self.pos += 1
        match = IDENTIFIER.match(self.text, self.pos) or _STRING.match(self.text, self.pos)
        if match is None:
            raise self.error(f"expected a name after `{sigil}`, found {self.found()}")
        self.pos = match.end()
        text = match[0]
        if text[0] == '"':
            text = self._unquote(text, start)
        self.skip()
        return text

    def value_name(self) -> str | int:
        """Consumes `%name` or the number of an anonymous value, `%0`.

        Raises:
            ParseError: When there is none.
        """
        match = self.match(_NUMBERED)
        return self.name("%", "a value") if match is None else int(match[1])

    def integer(self, what: str) -> int:
        """Consumes an integer.

        Raises:
            ParseError: When there is none.
        """
        match = self.match(_INT)
        if match is None:
            raise self.error(f"expected {what}, found {self.found()}")
        return int(match[0])

    def trailing_comment(self) -> tuple[str, ...]:
        """Returns the entries of a comment on the line of the last token."""
        match = _COMMENT.match(self.text, self.end)
        if match is None or not match[1].strip():
            return ()
        entries: list[str] = []
        for found in _LOC_ENTRY.finditer(match[1]):
            entry = found[0].strip()
            if entry:
                entries.append(self._unquote(entry, match.start(1)) if entry[0] == '"' else entry)
        return tuple(entries)

    def _unquote(self, quoted: str, start: int) -> str:
        try:
            return str(json.loads(quoted))
        except json.JSONDecodeError as error:
            raise self.error(f"string {quoted}: {error.msg}", at=start + error.pos) from None

    def found(self) -> str:
        """Returns what stands at the position, for messages."""
        if self.at_end():
            return "the end of the text"
        end = self.text.find("\n", self.pos)
        line = self.text[self.pos : end if end >= 0 else None]
        match = re.match(r"[\w.]+|.", line)
        return f"`{match[0]}`" if match is not None else "the end of the line"

    def error(self, message: str, *, hint: str | None = None, at: int | None = None) -> ParseError:
        """Returns a parse error at the position (or `at`); the caller raises it."""
        pos = self.pos if at is None else at
        line = self.text.count("\n", 0, pos) + 1
        column = pos - (self.text.rfind("\n", 0, pos) + 1) + 1
        return ParseError(message, line=line, column=column, hint=hint)


def quote(text: str) -> str:
    """Returns `text` as a quoted string that `Scanner.string` reads back."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def print_name(sigil: str, name: str) -> str:
    """Returns `%name`, quoted when the name is no identifier."""
    return sigil + (name if IDENTIFIER.fullmatch(name) else quote(name))


def print_origins(loc: tuple[str, ...]) -> str:
    """Returns origins as the comment that `Scanner.trailing_comment` reads back ("" when none)."""
    if not loc:
        return ""
    entries = [
        entry
        if entry.isprintable() and entry.strip() == entry and entry and not set(entry) & {'"', ","}
        else quote(entry)
        for entry in loc
    ]
    return "  // " + ", ".join(entries)
