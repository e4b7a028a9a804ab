"""Paragraphs of an encyclopedia: the text of wiki pages without their markup."""

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path

MIN_CHARACTERS = 60
"""Shorter lines are captions and rests of tables."""

_PAGE = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
_HIDDEN = re.compile(
    r"<!--.*?-->|<(ref|math|gallery|timeline|nowiki|source)\b[^>]*?(?:/>|>.*?</\1>)", re.DOTALL
)
_INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}")
_FILE = re.compile(r"\[\[(?:File|Image|Category|[a-z-]+):[^\[\]]*\]\]")
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_OUTER = re.compile(r"\[https?:\S+ ?([^\]]*)\]")
_REST = re.compile(r"'{2,}|<[^>]+>")


def paragraphs(archive: Path) -> Iterator[str]:
    """Yields the paragraphs of the pages of a `.bz2` export, in order; headings and lists aside."""
    with bz2.open(archive, "rt", encoding="utf-8") as file:
        export = file.read()
    for page in _PAGE.findall(export):
        for line in plain(page).splitlines():
            text = line.strip()
            if len(text) >= MIN_CHARACTERS and text[0] not in "*#=|{}:;!<":
                yield text


def plain(page: str) -> str:
    """Returns the text of a page: templates, tables and notes removed, links as they read."""
    text = _HIDDEN.sub("", html.unescape(page))
    text = _until_stable(text, _INNERMOST, "")
    while (found := _LINK.sub(r"\1", _FILE.sub("", text))) != text:
        text = found
    text = _OUTER.sub(r"\1", text)
    return _REST.sub("", text).replace("\xa0", " ")


def _until_stable(text: str, pattern: re.Pattern[str], new: str) -> str:
    """Replaces nested matches from the inside out."""
    while (found := pattern.sub(new, text)) != text:
        text = found
    return text
