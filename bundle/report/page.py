"""The page: what can stand on it, and the HTML file that holds all of it.

Jinja2 escapes every text; only the pictures that this package draws pass as they are. The file needs no network (its
own content policy forbids one) and no script: scripts sort tables, nothing else.
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
        text: what it says.
        sort: what a table is sorted by, where that is not the text.
        link: id of the place on the page that it leads to.
        warn: marked as a thing to look at.
        left: text, which begins at the left, not a number.
        long: text that may take several lines.
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


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph that must not be missed."""

    kind: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Code:
    """A command."""

    kind: ClassVar = "code"
    text: str


@dataclass(frozen=True)
class Card:
    """One figure of a summary, with its name and what it means."""

    title: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Cards:
    """Figures side by side."""

    kind: ClassVar = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Table:
    """A table, sorted by a click on a title where scripts run."""

    kind: ClassVar = "table"
    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    sortable: bool = True

    @property
    def left(self) -> set[int]:
        """The columns that hold text."""
        return {i for row in self.rows for i, cell in enumerate(row) if cell.left}


@dataclass(frozen=True)
class Chart:
    """A drawing, as SVG of :mod:`bundle.report.charts` or :mod:`bundle.report.pictures`."""

    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Charts:
    """Drawings side by side."""

    kind: ClassVar = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Key:
    """What the colours of the contours mean, with switches for label and prediction; once on a page."""

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
    """What is folded until it is asked for."""

    kind: ClassVar = "details"
    summary: str
    blocks: Sequence[Block]
    open: bool = False


Block = Text | Heading | Note | Code | Cards | Table | Charts | Key | Strip | Details


@dataclass(frozen=True)
class Section:
    """A part of the page with its title, which the navigation names."""

    title: str
    blocks: Sequence[Block]

    @property
    def id(self) -> str:
        """Where the navigation leads."""
        return anchor(self.title)


def anchor(words: str) -> str:
    """An id of the page for a text, such as a case's name."""
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
