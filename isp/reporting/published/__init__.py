"""Published scores of the paper, and their assignment to the cells of a study.

Jaiswal et al., "Instant Soup: Cheap Pruning Ensembles in A Single Pass Can Draw Lottery Tickets from Large Models",
ICML 2023, arXiv 2306.10460. The CSV files contain them as printed, one row per cell: Tables 2 and 3, and Tables 4 to 7
with Figure 3 (right). They are shown beside our scores for comparison only; none of our numbers is derived from them.

Caveats, which are in the notes of the cells:

- In Table 3 the rows "Full BERT", "Random" and "LTH" are those of Chen et al. 2020, "The Lottery Ticket Hypothesis for
  Pre-trained BERT Networks", Table 2: 26 of 27 cells are equal to the digit. The other is LTH on RTE, 66.0 there and
  65.0 here, which looks like a misprint.
- Table 3 prints one "90 %" over MNLI and QQP. The 70 % given here for MNLI is that of Chen et al.
- `early_bird` cannot be what the paper calls EarlyBird (see `EARLY_BIRD`).
- Table 4 names no sparsity. Its rows for ISP equal those of Tables 2 and 3 at one sparsity of the task, which is used.
- Table 5's caption says CIFAR-10 at 80 %, but its values are those of CIFAR-100 at 80 % (N = 0 is Table 4's row, and
  the others are near Table 2's 71.09, not its 91.20). Its cells are given for both tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path

from isp.files import read_csv

CITATION = "Jaiswal et al., ICML 2023"

CHEN = "copied by the paper from Chen et al. 2020, Table 2, where LTH on RTE is 66.0 instead of 65.0"
MNLI = "the paper prints one sparsity, 90 %, over MNLI and QQP; 70 % for MNLI is that of Chen et al. 2020"
EARLY_BIRD = (
    "the paper does not describe its EarlyBird, and it cannot be ours: early masks of pre-trained weights are those of "
    "one-shot pruning, while the published scores are close to LTH"
)
TABLE_4 = "Table 4 names no sparsity; this is the one at which Tables 2 and 3 have its ISP score"
TABLE_5 = "Table 5's caption says CIFAR-10, but its values are those of CIFAR-100 at 80 %"

_ALIASES = (
    ("isp_n0", "isp_without_denoiser"),
    ("isp_without_denoiser", "denoisers=0"),
    (r"(?:denoisers_|isp_n|n)(\d+)", r"denoisers=\1"),
    (r"(?:look_ahead_|isp_c|c)(\d+)", r"look_ahead=\1"),
    ("isp", "look_ahead=50"),  # C of Table 1
)
"""Patterns of names of `isp` variants, and the published names that they correspond to."""


@dataclass(frozen=True)
class Published:
    """A published score.

    Attributes:
        source: Source of the score: "table2" to "table7" or "fig3_right".
        backbone: Name of the backbone in this package.
        task: Name of the task in this package.
        name: Name of the published row: a method (Tables 2 and 3), or a variant such as "denoisers=4" (4 to 7).
        sparsity: Sparsity with four decimals, as in rows; "0.0000" is dense.
        score: Score in percent; in Figure 3, 100 times a cosine.
        std: Standard deviation over the paper's three seeds; None if none was published.
        notes: Contradictions between the sources, and the origin of the score if the paper copied it.
        comparable: False if a note says that the score is for another task or another method.
    """

    source: str
    backbone: str
    task: str
    name: str
    sparsity: str
    score: float
    std: float | None
    notes: tuple[str, ...] = ()
    comparable: bool = True


@cache
def cells() -> tuple[Published, ...]:
    """Return the cells of Tables 2 to 7."""
    main = [_annotate(cell) for cell in _read("tables_2_3", "method")]
    by_score = {(own.backbone, own.task, own.score): own.sparsity for own in main if own.name == "isp"}
    isp = [own for own in _others("table4") if own.name == "isp"]
    sparsities = {(own.backbone, own.task): by_score[own.backbone, own.task, own.score] for own in isp}
    all_cells = list(main)
    for own in _others("table4"):
        all_cells.append(replace(own, sparsity=sparsities[own.backbone, own.task], notes=(TABLE_4,)))
    for own in _others("table5"):
        all_cells += [
            replace(own, task=task, notes=(TABLE_5,), comparable=task == "cifar100") for task in ("cifar10", "cifar100")
        ]
    return (*all_cells, *_others("table6"), *_others("table7"))


def _annotate(cell: Published) -> Published:
    """Return a cell of Tables 2 or 3 with its notes."""
    notes = []
    if cell.source == "table3":
        notes += [CHEN] if cell.name in ("dense", "random", "lth") else []
        notes += [MNLI] if cell.task == "mnli" and Decimal(cell.sparsity) else []
    if cell.name == "early_bird":
        notes.append(EARLY_BIRD)
    return replace(cell, notes=tuple(notes), comparable=EARLY_BIRD not in notes)


def cosines() -> tuple[Published, ...]:
    """Return the values of Figure 3 (right): 100 times the cosine similarity of the masks of LTH and one-shot."""
    return _others("fig3_right")


def names(variant: str, methods: Mapping[str, str]) -> list[str]:
    """Return the names of the published rows that correspond to a variant, the closest first.

    Variants of the method `isp` are identified by their names: `isp` is the paper's ISP, `isp_n0` the one without
    denoisers, `n4`, `isp_n4` and `denoisers_4` have N = 4, `c50`, `isp_c50`, `look_ahead_50` and `isp` have C = 50.
    Variants of `isp` with other names have no published score, since their rule may differ from the paper's. Variants
    of other methods have the rows of their name, unless it is the name of another method, and also the rows of their
    method if no other variant of the study has the same method.

    Args:
        variant: Name of the variant.
        methods: Method of each variant of the study.
    """
    method = methods[variant]
    if method == "isp":
        aliases = [re.sub(f"^{alias}$", name, variant) for alias, name in _ALIASES if re.fullmatch(alias, variant)]
        return [variant, *aliases]
    of_another = variant != method and any(variant == cell.name for cell in _read("tables_2_3", "method"))
    named = [variant, "finetuned"] if (variant, method) == ("dense", "dense") else [variant]
    alone = list(methods.values()).count(method) == 1
    return [*([] if of_another else named), *([method] if alone else [])]


def find(backbone: str, task: str, sparsity: str, rows: Sequence[str], prefer: str = "") -> Published | None:
    """Return the published cell that corresponds to a cell of a study; None if there is none.

    Args:
        backbone: Name of the backbone.
        task: Name of the task.
        sparsity: Sparsity with four decimals.
        rows: Result of `names` for the variant. The first published one is used, from the first table that contains it.
        prefer: Preferred source, "table2" to "table7"; if it contains any of the rows, its first one is used.
    """
    here = [own for own in cells() if (own.backbone, own.task, own.sparsity) == (backbone, task, sparsity)]
    candidates = [own for name in rows for own in here if own.name == name]
    return min(candidates, key=lambda own: own.source != prefer, default=None)


@cache
def _others(source: str) -> tuple[Published, ...]:
    return tuple(own for own in _read("tables_4_to_7", "variant") if own.source == source)


@cache
def _read(name: str, column: str) -> tuple[Published, ...]:
    return tuple(
        Published(
            source=row["source"],
            backbone=row["backbone"],
            task=row["task"],
            name=row[column],
            sparsity=f"{Decimal(row['sparsity_percent']) / 100:.4f}" if row["sparsity_percent"] else "",
            score=float(row["score"]),
            std=float(row["std"]) if row["std"] else None,
        )
        for row in read_csv(Path(__file__).parent / f"{name}.csv", "the package")
    )
