"""Looks of variants in all figures: one hue per family of methods, one shade and marker per variant of a family.

The family is the `FAMILY` of the method's file. A method from outside the package gets its own hue, so it stands
out from the methods that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_hex, to_rgb

from isp import registry
from isp.reporting import tabular
from isp.reporting.tabular import Row

HUES = {
    "dense": "#3f3f3f",
    "denoised": "#0072B2",
    "iterative": "#BF4A00",
    "pooled": "#7E3FA0",
    "one_shot": "#8F6A00",
    "single_pass": "#00795A",
    "souped": "#B5387A",
    "instant": "#4547C9",
}
"""Hue of each family of the package: safe for colour-blind readers, and legible as text on white."""
OTHER_HUES = ("#A3122B", "#5E7A14", "#00767E", "#7A4E2D")
"""Hues of further families and of methods from outside the package, in the order in which they appear."""
_SHADES = (0.0, 0.42, -0.45)
"""Shares of white (above 0) or black (below 0) in the colours of the variants of a family."""
_LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Look:
    """Look of a variant in every figure.

    Attributes:
        family: Family of its method.
        hue: Colour of the family, for names.
        color: Shade of that colour, for lines and markers.
        line: Line style.
        marker: Marker.
        hollow: Whether markers are hollow.
    """

    family: str
    hue: str
    color: str
    line: Any
    marker: str
    hollow: bool

    @property
    def face(self) -> str:
        """Colour inside a marker."""
        return "white" if self.hollow else self.color


def methods_of(rows: Iterable[Row]) -> dict[str, str]:
    """Return the method of each variant, in order of first appearance."""
    return {tabular.cell(row, "variant"): tabular.cell(row, "method") for row in rows}


def family_of(method: str) -> str:
    """Return the family of a method; the method's own name if it is not part of the package."""
    return str(registry.load("method", method).FAMILY) if method in registry.names("method") else method


def looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Return the look of each variant.

    Args:
        methods: Methods of all variants of a study by variant, in the study's order, so that a variant looks the same
            in all figures.
    """
    families: dict[str, list[str]] = {}
    for variant, method in methods.items():
        families.setdefault(family_of(method), []).append(variant)
    others = [family for family in families if family not in HUES]
    found = {}
    for family, variants in families.items():
        hue = HUES.get(family) or OTHER_HUES[others.index(family) % len(OTHER_HUES)]
        for index, variant in enumerate(variants):
            turn = index // len(_SHADES)
            found[variant] = Look(
                family,
                hue,
                _mixed(hue, _SHADES[index % len(_SHADES)]),
                _LINES[turn % len(_LINES)],
                _MARKERS[index % len(_MARKERS)],
                turn % 2 == 1,
            )
    return {variant: found[variant] for variant in methods}


def families_of(styles: Mapping[str, Look], variants: Sequence[str]) -> list[list[str]]:
    """Group variants by family; families and variants keep their order."""
    groups: dict[str, list[str]] = {}
    for variant in variants:
        groups.setdefault(styles[variant].family, []).append(variant)
    return list(groups.values())


def _mixed(color: str, share: float) -> str:
    """Mix a colour with white (`share` above 0) or black (below 0), which keeps its hue."""
    end = 1.0 if share > 0 else 0.0
    red, green, blue = (part + abs(share) * (end - part) for part in to_rgb(color))
    return to_hex((red, green, blue))
