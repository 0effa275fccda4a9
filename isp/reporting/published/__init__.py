"""The figures that the paper published, and which of them belong to a cell of a study.

Jaiswal et al., "Instant Soup: Cheap Pruning Ensembles in A Single Pass Can Draw Lottery Tickets from Large Models",
ICML 2023, arXiv 2306.10460. The CSV files hold them as printed, a row a cell: Tables 2 and 3, and Tables 4 to 7 with
the right of Figure 3. They are data to stand beside ours; no number of ours is made from them.

Two things are not as printed, and `cells` says so in a note:

- Table 4 names no sparsity. Its rows for ISP equal those of Tables 2 and 3 at one sparsity of the task, which is taken.
- Table 5's caption says CIFAR-10 at 80 %, but its values are those of CIFAR-100 at 80 % (N = 0 is Table 4's row, and
  the rest lies around Table 2's 71.09, not its 91.20). Its cells are given for both tasks.
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

TABLE_4 = "Table 4 names no sparsity; this is the one at which Tables 2 and 3 have its ISP score"
TABLE_5 = "Table 5's caption says CIFAR-10, but its values are those of CIFAR-100 at 80 %"

_ALIASES = (
    ("isp_n0", "isp_without_denoiser"),
    ("isp_without_denoiser", "denoisers=0"),
    (r"(?:denoisers_|isp_n|n)(\d+)", r"denoisers=\1"),
    (r"(?:look_ahead_|c)(\d+)", r"look_ahead=\1"),
    ("dense", "finetuned"),
    ("isp", "look_ahead=50"),  # C of Table 1
)
"""Names of variants as patterns, and the published names that they stand for."""


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        source: "table2" to "table7" or "fig3_right".
        backbone, task: as the package names them.
        name: the published row: a method (Tables 2 and 3), or a variant such as "denoisers=4" (4 to 7).
        sparsity: with four decimals, as in rows; "0.0000" is dense.
        score: in percent; in Figure 3 100 times a cosine.
        std: standard deviation over the paper's three seeds; None where none was published.
        note: what the sources disagree about, empty if nothing.
        comparable: False where by the note the figure is of another task.
    """

    source: str
    backbone: str
    task: str
    name: str
    sparsity: str
    score: float
    std: float | None
    note: str = ""
    comparable: bool = True


@cache
def cells() -> tuple[Published, ...]:
    """The cells of Tables 2 to 7."""
    main = _read("tables_2_3", "method")
    by_score = {(own.backbone, own.task, own.score): own.sparsity for own in main if own.name == "isp"}
    isp = [own for own in _others("table4") if own.name == "isp"]
    sparsities = {(own.backbone, own.task): by_score[own.backbone, own.task, own.score] for own in isp}
    found = list(main)
    for own in _others("table4"):
        found.append(replace(own, sparsity=sparsities[own.backbone, own.task], note=TABLE_4))
    for own in _others("table5"):
        found += [
            replace(own, task=task, note=TABLE_5, comparable=task == "cifar100") for task in ("cifar10", "cifar100")
        ]
    return (*found, *_others("table6"), *_others("table7"))


def cosines() -> tuple[Published, ...]:
    """The right of Figure 3: 100 times the cosine similarity of the masks of LTH and one-shot."""
    return _others("fig3_right")


def names(variant: str, methods: Mapping[str, str]) -> list[str]:
    """The published rows that a variant may be taken for, the closest first.

    That of its name; what its name stands for (`isp_n0` for ISP without denoiser, `n4`, `isp_n4` and `denoisers_4` for
    N = 4, `c50`, `look_ahead_50` and `isp` for C = 50, `dense` for fine-tuned); that of its method, where no other
    variant of the study has the same.

    Args:
        variant: name.
        methods: the method of each variant of the study.
    """
    aliases = [re.sub(f"^{pattern}$", name, variant) for pattern, name in _ALIASES if re.fullmatch(pattern, variant)]
    own = methods[variant]
    return [variant, *aliases, *([own] if list(methods.values()).count(own) == 1 else [])]


def find(backbone: str, task: str, sparsity: str, rows: Sequence[str], prefer: str = "") -> Published | None:
    """The published cell that a cell of a study can stand beside.

    Args:
        backbone: name.
        task: name.
        sparsity: with four decimals.
        rows: `names` of the variant; the first of them that is published is taken, from the first table that has it.
        prefer: a source, "table2" to "table7"; if it has any of the rows, the first of them there is taken.
    """
    here = [own for own in cells() if (own.backbone, own.task, own.sparsity) == (backbone, task, sparsity)]
    found = [own for name in rows for own in here if own.name == name]
    return min(found, key=lambda own: own.source != prefer, default=None)


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
