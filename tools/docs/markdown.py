"""Markdown from values: tables, and the text of docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, or an empty text if there are no rows."""
    lines = [[_cell(text) for text in row] for row in rows]
    if not lines:
        return ""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(header), ["---"] * len(header), *lines]) + "\n"


def _cell(text: str) -> str:
    """A cell: a line break would end the row, a bar the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return a text set as code; an empty one stays empty."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Return the text of a docstring as Markdown: what looks like HTML is shown, and a list is one."""
    lines = inspect.cleandoc(text).splitlines()
    spaced: list[str] = []
    for line in lines:
        if re.match(r"- |\d+\. ", line) and spaced and spaced[-1] and not re.match(r"- |\d+\. |  ", spaced[-1]):
            spaced.append("")
        spaced.append(re.sub(r"^  (?=\S)", "    ", line))
    return "".join(
        part if index % 2 else part.replace("<", "&lt;").replace("*", "\\*").replace("|", "&#124;")
        for index, part in enumerate(re.split(r"(`[^`]*`)", "\n".join(spaced)))
    )


def first_line(text: str | None) -> str:
    """Return the first line of a docstring."""
    return (text or "").strip().split("\n")[0]
