"""Wiki markup: what is left of a page is what a reader reads."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from benchmarks.encyclopedia import paragraphs, plain


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("see [[Main page|the page]] or [[other]]", "see the page or other"),
        ("a{{cite|{{nested}}}}b", "ab"),
        ("[[File:x.png|thumb|of [[a]] thing]]after", "after"),
        (
            "said&lt;ref name=x&gt;note&lt;/ref&gt; &lt;ref name=y /&gt;twice",
            "said twice",
        ),
        ("[http://example.org the site]", "the site"),
        ("{| table\n| cell\n|}rest", "rest"),
    ],
)
def test_markup_is_removed(page: str, text: str) -> None:
    assert plain(page) == text


def test_paragraphs_of_an_export(tmp_path: Path) -> None:
    body = "word " * 20
    page = f"== Heading ==\n* {body}\nshort\n{body}\n[[Category:Words]]"
    export = tmp_path / "pages.xml.bz2"
    export.write_bytes(bz2.compress(f'<page><text space="keep">{page}</text></page>'.encode()))
    assert list(paragraphs(export)) == [body.strip()]
