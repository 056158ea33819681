"""The page's elements, and the HTML file with all of them.

Jinja2 escapes every text except the pictures that this package draws. The file needs no network (its content policy
forbids one) and no script: scripts only sort tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from scripts.utils.files import write_text

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Cell",
    "Chart",
    "Charts",
    "Code",
    "Details",
    "Heading",
    "Key",
    "Note",
    "Section",
    "Strip",
    "Table",
    "Text",
    "anchor",
    "number",
    "text",
    "write_page",
]


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: its text.
        sort: sort key, if it differs from the text.
        link: id of the linked element of the page.
        warn: whether it is highlighted.
        left: whether it is left-aligned text, not a number.
        long: whether its text may have several lines.
    """

    text: str
    sort: float | str | None = None
    link: str = ""
    warn: bool = False
    left: bool = False
    long: bool = False


def number(value: float | None, digits: int, warn: bool = False, sign: bool = False) -> Cell:
    """The cell of a number, empty for None."""
    if value is None:
        return Cell("", "")
    return Cell(f"{value:{'+' if sign else ''},.{digits}f}", round(value, 6), warn=warn)


def text(words: str, link: str = "", long: bool = False) -> Cell:
    """The cell of a text."""
    return Cell(words, link=link, left=True, long=long)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


class Heading(Text):
    """A heading within a section."""

    kind: ClassVar = "heading"


class Note(Text):
    """A highlighted paragraph."""

    kind: ClassVar = "note"


class Code(Text):
    """A command."""

    kind: ClassVar = "code"


@dataclass(frozen=True)
class Card:
    """One figure of a summary, with its name and explanation."""

    title: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Cards:
    """Figures in a row."""

    kind: ClassVar = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Table:
    """A table; with scripts, a click on a title sorts it."""

    kind: ClassVar = "table"
    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    sortable: bool = True

    @property
    def left(self) -> set[int]:
        """The columns with text."""
        return {i for row in self.rows for i, cell in enumerate(row) if cell.left}


@dataclass(frozen=True)
class Chart:
    """A drawing, as SVG of :mod:`bundle.report.charts` or :mod:`bundle.report.pictures`."""

    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Charts:
    """Drawings in a row."""

    kind: ClassVar = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Key:
    """The legend of the contours, with switches for label and prediction; once per page."""

    kind: ClassVar = "key"
    colours: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Strip:
    """Pictures of one case in a row, under its name."""

    kind: ClassVar = "strip"
    title: str
    detail: str
    pictures: Sequence[Chart]
    id: str = ""


@dataclass(frozen=True)
class Details:
    """Content that is folded at first."""

    kind: ClassVar = "details"
    summary: str
    blocks: Sequence[Block]
    open: bool = False


Block = Text | Heading | Note | Code | Cards | Table | Charts | Key | Strip | Details


@dataclass(frozen=True)
class Section:
    """A part of the page with its title, which is listed in the navigation."""

    title: str
    blocks: Sequence[Block]

    @property
    def id(self) -> str:
        """The link target of the navigation."""
        return anchor(self.title)


def anchor(words: str) -> str:
    """The id of a text on the page, such as a case's name."""
    return "at-" + re.sub(r"[^\w.-]+", "-", words)


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page; sections without content are left out.

    Args:
        path: the HTML file.
        title: its title.
        subtitle: a line below it.
        sections: in order.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    shown = [section for section in sections if section.blocks]
    page = environment.get_template("page.html").render(title=title, subtitle=subtitle, sections=shown)
    write_text(path, page + "\n")
