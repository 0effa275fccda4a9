"""Write the tables of differences between variants into the pages of docs/, from the reference results.

    python tools/differences.py

A table is between two comments, `<!-- differences STUDY REFERENCE:begin -->` and the same with `end`; after the
reference they may name the variants to show. A test compares the pages with what this writes.
"""

from __future__ import annotations

import re
import statistics as means
from collections.abc import Sequence
from pathlib import Path

from isp.metrics import value_range
from isp.reporting import evidence, statistics, tables, tabular
from isp.reporting.collected import read
from isp.reporting.tabular import Row

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs"
MARKER = re.compile(r"<!-- (differences (\S+) (\S+)((?: \S+)*)):begin -->")
LEGEND = (
    "Differences to `{reference}` in points of test scores: {shown}. A run is a "
    "seed, its value a mean over sparsities.{over} Written by "
    "`python tools/differences.py` from [metrics.csv]({place}/{study}/metrics.csv)."
)
INTERVALS = "mean with its 95 % interval (Student's t)"
VALUES = "both values of two seeds"
OVER_SEEDS = " The interval of a task is over its seeds."
OVER_TASKS = (
    " The interval of a task is over its seeds; that over tasks is over their means, since runs of one task are not "
    "independent."
)


def rows(metrics: Sequence[Row], reference: str, variants: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, a row per variant: the difference to the reference in each task, and over three or more.

    Variants are in the order of their mean over tasks, the greatest first; those whose differences are all equal share
    a row. A difference is a mean over the sparsities that both have; variants that share none in a task are left out.
    """
    by_variant = {name: statistics.over_runs(metrics, name, reference, "test") for name in variants}
    tasks = tabular.distinct(metrics, "task")
    complete = {name: found for name, found in by_variant.items() if set(found) == set(tasks) and name != reference}
    low, high = value_range(tabular.cell(metrics[0], "metric"))
    shared: dict[str, tuple[list[str], list[list[float]]]] = {}
    for name, found in complete.items():
        samples = [found[task] for task in tasks]
        if len(tasks) >= tabular.FEWEST:
            samples.append(statistics.independent(found))
        shared.setdefault(str(samples), ([], samples))[0].append(name)
    ordered = sorted(shared.values(), key=lambda each: -means.fmean(map(means.fmean, each[1][: len(tasks)])))
    header = ["variant", *tasks, *(["over tasks"] if len(tasks) >= tabular.FEWEST else [])]
    return header, [
        [", ".join(f"`{name}`" for name in names), *(_text(sample, (low - high, high - low)) for sample in samples)]
        for names, samples in ordered
    ]


def _text(values: Sequence[float], limits: tuple[float, float]) -> str:
    around = statistics.interval(values, limits)
    if around is None:
        return " / ".join(map(_signed, values))
    return f"{_signed(means.fmean(values))} ({_signed(around[0])} to {_signed(around[1])})"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def table(study: str, reference: str, variants: Sequence[str], page: Path) -> str:
    """Return the Markdown of a table for a page below docs/."""
    metrics = read(PAGES / "results" / study / "metrics.csv", "metrics")
    header, body = rows(metrics, reference, variants or tabular.distinct(metrics, "variant"))
    place = "/".join([".."] * (len(page.relative_to(PAGES).parts) - 1) + ["results"])
    cells = [cell for _, *cells in body for cell in cells]
    kinds = {INTERVALS: any("(" in cell for cell in cells), VALUES: any("/" in cell for cell in cells)}
    shown = " or ".join(kind for kind, is_there in kinds.items() if is_there)
    over = (OVER_TASKS if "over tasks" in header else OVER_SEEDS) if kinds[INTERVALS] else ""
    legend = LEGEND.format(reference=reference, shown=shown, over=over, place=place, study=study)
    return tables.markdown([(header, body)], legend)


def updated(text: str, page: Path) -> str:
    """Return the text of a page with its tables of differences."""
    for name, study, reference, variants in MARKER.findall(text):
        text = evidence.insert(text, name, table(study, reference, variants.split(), page), page)
    return text


def main() -> None:
    """Write the tables of all pages."""
    for page in sorted(PAGES.glob("*/*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := updated(text, page)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
