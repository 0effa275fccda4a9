"""Write the tables of differences between variants into the pages of docs/, from the reference results.

    python tools/differences.py

A table is between two comments, `<!-- differences STUDY REFERENCE:begin -->` and the same with `end`; after the
reference they may name the variants to show; a name that the study does not have is an error. A test compares the
pages with what this writes.
"""

from __future__ import annotations

import re
import statistics as means
import sys
from collections.abc import Sequence
from pathlib import Path

from isp.errors import ConfigError, IspError
from isp.reporting import evidence, statistics, tables, tabular
from isp.reporting.collected import read
from isp.reporting.tabular import Row

PAGES = Path(__file__).parent.parent / "docs"
MARKER = re.compile(r"<!-- (differences (\S+) (\S+)((?: \S+)*)):begin -->")
LEGEND = (
    "Differences to `{reference}` in points of test scores: {shown}. A run is a "
    "seed, its value a mean over sparsities.{over} Written by "
    "`python tools/differences.py` from [metrics.csv]({place}/{study}/metrics.csv)."
)
INTERVALS = "mean with its 95 % interval (Student's t)"
VALUES = "both values of two seeds"
VALUE = "the value of one seed"
EQUAL = "the mean alone of three or more equal values, whose interval is not defined"
OVER_SEEDS = " The interval of a task is over its seeds."
OVER_TASKS = (
    " The interval of a task is over its seeds; that over tasks is over their means, since runs of one task are not "
    "independent."
)


Samples = list[list[float]]
"""Differences of a row of a table: one sample per column after the first."""


def rows(metrics: Sequence[Row], reference: str, variants: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of text, see `samples`."""
    header, body = samples(metrics, reference, variants)
    low, high = statistics.widest_range(metrics)
    limits = (low - high, high - low)
    return header, [
        [", ".join(f"`{name}`" for name in names), *(_text(sample, limits) for sample in row)] for names, row in body
    ]


def samples(
    metrics: Sequence[Row], reference: str, variants: Sequence[str]
) -> tuple[list[str], list[tuple[list[str], Samples]]]:
    """Return header and rows, a row per variant: the difference to the reference in each task, and over three or more.

    Variants are in the order of their mean over tasks, the greatest first; those whose differences are all equal share
    a row. A difference is a mean over the sparsities that both have; variants that share none in a task are left out.
    """
    by_variant = {name: statistics.over_runs(metrics, name, reference, "test") for name in variants}
    tasks = tabular.distinct(metrics, "task")
    complete = {name: found for name, found in by_variant.items() if set(found) == set(tasks) and name != reference}
    shared: dict[str, tuple[list[str], Samples]] = {}
    for name, found in complete.items():
        row = [found[task] for task in tasks]
        if len(tasks) >= tabular.FEWEST:
            row.append(statistics.independent(found))
        shared.setdefault(str(row), ([], row))[0].append(name)
    ordered = sorted(shared.values(), key=lambda each: -means.fmean(map(means.fmean, each[1][: len(tasks)])))
    header = ["variant", *tasks, *(["over tasks"] if len(tasks) >= tabular.FEWEST else [])]
    return header, ordered


def _text(values: Sequence[float], limits: tuple[float, float]) -> str:
    around = statistics.interval(values, limits)
    if around is None:
        return " / ".join(map(_signed, values if len(values) < tabular.FEWEST else [means.fmean(values)]))
    return f"{_signed(means.fmean(values))} ({_signed(around[0])} to {_signed(around[1])})"


def _kind(values: Sequence[float]) -> str:
    """Return the part of the legend that describes how a sample is shown."""
    if len(values) < tabular.FEWEST:
        return VALUE if len(values) == 1 else VALUES
    return EQUAL if statistics.interval(values) is None else INTERVALS


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def _check(where: str, kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}: {kind} = {name}: must be one of {', '.join(known)}")


def table(study: str, reference: str, variants: Sequence[str], page: Path) -> str:
    """Return the Markdown of a table for a page below docs/.

    Raises:
        ConfigError: If there is no such study, it does not have the reference or a variant, or no variant shares a
            sparsity with the reference in every task.
    """
    where = f"{page}: <!-- {' '.join(['differences', study, reference, *variants])}:begin -->"
    _check(where, "study", [study], sorted(path.parent.name for path in PAGES.glob("results/*/metrics.csv")))
    metrics = read(PAGES / "results" / study / "metrics.csv", "metrics")
    known = tabular.distinct(metrics, "variant")
    _check(where, "reference", [reference], known)
    _check(where, "variant", variants, known)
    variants = variants or known
    header, body = rows(metrics, reference, variants)
    if not body:
        raise ConfigError(f"{where}: none of the variants has a sparsity of {reference} in every task")
    place = "/".join([".."] * (len(page.relative_to(PAGES).parts) - 1) + ["results"])
    kinds = {_kind(sample) for _, row in samples(metrics, reference, variants)[1] for sample in row}
    shown = " or ".join(kind for kind in (INTERVALS, VALUES, VALUE, EQUAL) if kind in kinds)
    over = (OVER_TASKS if "over tasks" in header else OVER_SEEDS) if INTERVALS in kinds else ""
    legend = LEGEND.format(reference=reference, shown=shown, over=over, place=place, study=study)
    return tables.markdown([(header, body)], legend)


def updated(text: str, page: Path) -> str:
    """Return the text of a page with its tables of differences."""
    for name, study, reference, variants in MARKER.findall(text):
        text = evidence.insert(text, name, table(study, reference, variants.split(), page), page)
    return text


def main() -> None:
    """Write the tables of all pages, or none if one of them is wrong."""
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*/*.md"))}
    try:
        new = {page: updated(text, page) for page, text in texts.items()}
    except IspError as error:
        sys.exit(f"error: {error}")
    for page in [page for page in texts if new[page] != texts[page]]:
        page.write_text(new[page], encoding="utf-8")
        print(page.relative_to(PAGES.parent))


if __name__ == "__main__":
    main()
