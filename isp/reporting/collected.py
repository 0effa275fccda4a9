"""Readers of the CSV files that `isp collect` writes, with checks of the columns and numbers that reports rely on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from isp.files import is_number, read_csv, stream_csv
from isp.reporting import collect
from isp.reporting.tabular import Row

Name = Literal["metrics", "timings", "rounds", "layers", "agreement", "similarity", "similarity_layers"]
COLUMNS: dict[Name, tuple[str, ...]] = {
    "metrics": collect.METRICS,
    "timings": collect.TIMINGS,
    "rounds": collect.ROUNDS,
    "layers": collect.LAYERS,
    "agreement": collect.AGREEMENT,
    "similarity": collect.SIMILARITY,
    "similarity_layers": collect.SIMILARITY_LAYERS,
}
"""Columns by the name of the file."""
_LATER = {
    *("collapsed_layers", "majority_validation", "majority_test", "chosen_on"),
    *("second_metric", "second_validation", "second_test"),
}
"""Columns that results of earlier versions lack."""
_TEXTS = {*collect.RUN, "variant_a", "variant_b", "layer", "metric", "second_metric", "chosen_on", "device"} - {"seed"}
_MAY_BE_EMPTY = {*_LATER, "changed", "agreement"}
_WHOLE = {"seed", "round"}


def read(path: Path, name: Name) -> list[Row]:
    """Return the rows of a file.

    Args:
        path: File to read.
        name: Name of the file without its suffix.

    Raises:
        ArtifactError: The file is missing, lacks a column, or has a value that is not a number in a numeric column.
            The message names the file, line and column.
    """
    return [*read_csv(path, "collect", _columns(name), _problem)]


def stream(path: Path, name: Name) -> Iterator[Row]:
    """Yield the rows of a file one after another, without reading the file into memory. See `read`."""
    return stream_csv(path, "collect", _columns(name), _problem)


def _columns(name: Name) -> list[str]:
    return [column for column in COLUMNS[name] if column not in _LATER]


def _problem(column: str, text: str) -> str:
    if column in _TEXTS or (not text and column in _MAY_BE_EMPTY):
        return ""
    if column in _WHOLE:
        return "" if text.isascii() and text.isdecimal() else "a whole number"
    if not is_number(text):
        return "a finite number"
    if column == "sparsity":
        return "" if 0 <= float(text) < 1 else "a number in [0, 1)"
    if column == "weights":
        return "" if float(text) > 0 else "a number above 0"
    return ""
