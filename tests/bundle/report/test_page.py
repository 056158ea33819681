"""The page: external text is escaped, and a browser shows it without errors."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from bundle.report import charts
from bundle.report.page import (
    Card,
    Cards,
    Chart,
    Charts,
    Code,
    Details,
    Heading,
    Key,
    Note,
    Section,
    Strip,
    Table,
    Text,
    number,
    text,
    write_page,
)
from bundle.report.pictures import picture

EVIL = "<script>throw Error('no')</script>\"'&$x^2$"


def browse(page: Path) -> tuple[str, list[str]]:
    """The page in a browser after its scripts ran, and the console's messages; skips without a browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    words = [f"--{flag}" for flag in (*flags.split(), "disable-component-update", "disable-sync", "dump-dom")]
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [program, *words, "--enable-logging=stderr", f"--user-data-dir={profile}", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_series_of_more_methods_than_colours_stay_distinct() -> None:
    points = {f"method {n}": (["0", "1"], [n / 20, n / 10]) for n in range(len(charts.PALETTE) + 2)}
    svg = charts.series(points, "weight", "weight", "mean DSC")
    for name in points:
        assert f">{name}<" in svg
    # a line in the plot and one in the legend
    assert svg.count("stroke-dasharray") == 2 * 2


def everything(words: str) -> list[Section]:
    """A page with every kind of element, containing these words."""
    dots = np.arange(5.0)
    drawn = [
        charts.boxes({words: dots, "b": dots}, words, words),
        charts.lines({words: (np.arange(5), dots), "b": (np.arange(5), dots)}, words, words),
        charts.series({words: (["1", words], [0.1, 0.2])}, words, words, words),
        charts.embedding_chart(np.random.default_rng(0).random((9, 2)), np.zeros(9), [words], ["red"]),
    ]
    shown = picture(np.zeros((4, 5, 1), np.uint8), {"label": np.eye(4, 5, dtype=np.uint8)}, ["#ff0000"], 50)
    rows = [[text(words, "case-1"), number(2.5, 1)], [text("b"), number(10, 1)], [text("c"), number(None, 1)]]
    blocks = [Text(words), Note(words), Heading(words), Code(words), Cards([Card(words, words, words)])]
    strip = Strip(words, words, [Chart(shown, words)], "case-1")
    return [
        Section(words, [*blocks, Table([words, "n"], rows, words), Key([(words, "red")]), Details(words, [strip])]),
        Section("Charts", [Charts([Chart(svg, words) for svg in drawn])]),
        Section("Nothing", []),
    ]


def test_words_from_outside_stay_words(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, EVIL, EVIL, everything(EVIL))
    html = page.read_text()
    assert html.count("<script") == 1, "the page's own"
    assert "&lt;script&gt;throw" in html
    assert ">Nothing<" not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "the charts' parts have ids of their own"


def test_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, "title", "subtitle", everything("words"))
    links = re.findall(r'(?:href|src)="([^"]*)"', page.read_text())
    assert links
    assert {link.partition(":")[0][:1] for link in links} <= {"#", "d"}, links


def test_a_browser_shows_it_without_complaint_and_sorts_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, "title", "subtitle", everything(EVIL))
    # like a reader: sort by the number, descending
    clicks = "<script>const b = document.querySelectorAll('th button')[1]; b.click(); b.click();</script>"
    page.write_text(page.read_text().replace("</body>", f"{clicks}</body>"))
    shown, console = browse(page)
    assert console == []
    body = shown[shown.index("<tbody>") : shown.index("</tbody>")]
    assert re.findall(r">(10\.0|2\.5)<", body) == ["10.0", "2.5"]
    assert 'aria-sort="descending"' in shown


def test_the_browsers_complaints_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><script>throw Error('seen')</script>")
    _, console = browse(page)
    assert any("seen" in line for line in console)
