"""Structure of every figure, by numbers: lines per panel, hues of families, sizes of texts, and texts apart."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator
from colorsys import rgb_to_hls
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from isp import registry
from isp.reporting import FIGURES, dots, drawing, figures, labels, mask_figures, paper_figures
from isp.reporting.axes import set_score_scale
from isp.reporting.looks import HUES, OTHER_HUES, family_of, looks
from tests.support.records import Rows, cost, record, way

ROOT = Path(__file__).parent.parent
SCREEN = 700
"""Width in pixels at which a figure must be legible."""
LINES = ("score_by_sparsity", "mask_similarity_by_sparsity", "paper_figure_1")
"""Figures that are lines for many sparsities, and dots for few."""
METHODS = ["dense", *(name for name in registry.names("method") if family_of(name) not in ("dense", "souped"))]
VARIANTS = {**{name: name for name in METHODS}, "isp_n0": "isp", "isp_long_name_of_a_variant": "isp", "mine": "mine"}


def made(folder: Path, sparsities: list[str], variants: dict[str, str], seeds: int = 1, **cell: str) -> Rows:
    """Return the rows of a study in which each variant's scores fall with sparsity; the method `random` collapses."""
    records = []
    for seed, (index, (variant, method)) in itertools.product(range(seeds), enumerate(variants.items())):
        for sparsity in ["0.0000"] if method == "dense" else sparsities:
            score = 20.0 if method == "random" else 97.0 - index * float(sparsity) ** 2 + 0.3 * seed
            more = {"rounds": way(sparsity, seed=seed)} if family_of(method) == "denoised" else {}
            finding = cost(30 * index)
            records.append(record(variant, sparsity, seed, score, method=method, finding=finding, **cell, **more))
    return Rows(records, folder, both=3)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Figure]]:
    """Return all drawn figures of a study with 22 variants, and those that are lines for many sparsities."""
    rows = made(tmp_path_factory.mktemp("few"), ["0.9000", "0.9500"], VARIANTS)
    more = made(tmp_path_factory.mktemp("more"), ["0.3600", "0.5000", "0.7000", "0.9000"], VARIANTS)
    lines = {
        "score_by_sparsity": figures.score_by_sparsity(more.metrics),
        "mask_similarity_by_sparsity": mask_figures.mask_similarity_by_sparsity(more.similarity, more.metrics),
        "paper_figure_1": paper_figures.paper_figure_1(more.metrics),
    }
    found = {
        study: {name: figure for name, (figure, _) in drawings.items()}
        for study, drawings in (("few", rows.drawings()), ("more", lines))
    }
    for figure in (figure for study in found.values() for figure in study.values()):
        with drawing.style(), warnings.catch_warnings():
            warnings.simplefilter("error")  # a layout that does not fit
            figure.draw_without_rendering()
    return found


def texts_of(figure: Figure) -> Iterator[Text]:
    """Yield the visible texts with any content, except labels of ticks that are not in view."""
    hidden = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            hidden |= {id(label) for tick in ticks for label in (tick.label1, tick.label2)}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            yield text


each = pytest.mark.parametrize(
    ("study", "name"), [*(("few", name) for name in FIGURES), *(("more", name) for name in LINES)]
)


@each
def test_a_figure_is_legible_at_700_pixels(many: dict[str, dict[str, Figure]], study: str, name: str) -> None:
    figure = many[study][name]
    width = float(figure.get_size_inches()[0])
    assert width <= drawing.WIDTH + 1e-6
    assert min(text.get_fontsize() for text in texts_of(figure)) / 72 * SCREEN / max(width, drawing.WIDTH) >= 9


@each
def test_no_text_hides_another(many: dict[str, dict[str, Figure]], study: str, name: str) -> None:
    figure = many[study][name]
    # without the line from an annotation to its point
    boxes = [(text.get_text(), Text.get_window_extent(text).padded(-2)) for text in texts_of(figure)]
    hidden = [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]
    assert hidden == []
    whole = figure.bbox
    assert [text for text, box in boxes if box.x0 < whole.x0 or box.x1 > whole.x1 or box.y1 > whole.y1] == []


@each
def test_a_panel_has_seven_lines_at_most(many: dict[str, dict[str, Figure]], study: str, name: str) -> None:
    for axes in many[study][name].axes:
        lines = [line for line in axes.get_lines() if line.get_linestyle() != "None" and len(line.get_xydata()) > 1]  # type: ignore[arg-type]
        assert len(lines) <= drawing.LINES + ("mask" in name)  # and the level of random masks


@each
def test_names_have_the_hue_of_their_family(many: dict[str, dict[str, Figure]], study: str, name: str) -> None:
    """Check lines, points and rows of dots; the rows of a map of layers have no colour."""
    styles = looks(VARIANTS)
    shown = {}
    for text in texts_of(many[study][name]):
        variant = text.get_text().removesuffix("*")
        if variant in styles and text.get_color() != "black":
            shown[variant] = text.get_color()
    assert shown.items() <= {variant: look.hue for variant, look in styles.items()}.items()
    if name in ("score_by_sparsity", "score_by_cost", "paper_figure_1"):
        assert len(shown) >= len(VARIANTS) - 2  # very long names are shortened
    assert not many[study][name].legends  # names are beside what they name


def hue(color: Any) -> tuple[float, float]:
    """Return hue and saturation."""
    found = rgb_to_hls(*to_rgb(color))
    return found[0], found[2]


def test_a_family_is_one_hue() -> None:
    styles = looks(VARIANTS)
    families: dict[str, set[str]] = {}
    for look in styles.values():
        families.setdefault(look.family, set()).add(look.hue)
        if look.family != "dense":
            assert hue(look.color)[0] == pytest.approx(hue(look.hue)[0], abs=0.01)
    assert all(len(hues) == 1 for hues in families.values())
    of_family = [styles[name] for name in VARIANTS if styles[name].family == "one_shot"]
    assert len({(look.color, look.marker, look.hollow) for look in of_family}) == len(of_family) == 6


def test_every_family_has_a_hue_that_no_other_has() -> None:
    assert set(HUES) == set(registry.names("family"))
    hues = [hue(color)[0] for family, color in HUES.items() if family != "dense"]
    apart = [min(abs(a - b), 1 - abs(a - b)) for a, b in itertools.combinations(hues, 2)]
    assert min(apart) > 0.04
    for color in (*HUES.values(), *OTHER_HUES):  # names are legible on white: contrast of 4.5 or more
        channels = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
        luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), channels, strict=True))
        assert 1.05 / (luminance + 0.05) >= 4.5


def test_a_method_of_the_user_is_a_family_of_its_own() -> None:
    styles = looks({"a": "my_method", "isp": "isp", "b": "my_method", "c": "other"})
    assert styles["a"].hue == styles["b"].hue == OTHER_HUES[0]
    assert styles["a"].color != styles["b"].color
    assert styles["c"].hue == OTHER_HUES[1]
    assert looks({"isp": "isp", "c": "other"})["isp"].hue == styles["isp"].hue


def test_packs_by_hand() -> None:
    families = [["dense"], ["a1", "a2", "a3"], ["lth", "lth2"], ["b1", "b2", "b3", "b4"]]
    assert drawing.packs(families[:3], ["dense", "lth"]) == [["dense", "a1", "a2", "a3", "lth", "lth2"]]
    assert drawing.packs(families, ["dense", "lth"]) == [
        ["dense", "a1", "a2", "a3", "lth", "lth2"],
        ["dense", "lth", "b1", "b2", "b3", "b4"],
    ]
    large = [[f"c{index}" for index in range(9)]]
    assert drawing.packs(large, []) == [large[0][:7], large[0][7:]]


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([], []),
        ([0.0, 5.0], [0.0, 5.0]),
        ([0.0, 0.0], [-0.5, 0.5]),
        ([0.0, 0.0, 0.9], [-0.7, 0.3, 1.3]),
        ([0.0, 0.2, 9.0], [-0.4, 0.6, 9.0]),
    ],
)
def test_labels_are_apart(heights: list[float], expected: list[float]) -> None:
    assert labels.apart(heights, 1.0) == pytest.approx(expected)


def test_texts_are_cut_and_wrapped_to_a_width() -> None:
    long = "a_name_that_is_far_too_long_for_its_place"
    cut = labels.shortened(long, 1.0, 9)
    assert "…" in cut
    assert (cut[0], cut[-1]) == ("a", "e")
    assert labels.text_width(cut, 9) <= 1.0 < labels.text_width(long, 9)
    assert labels.shortened("short", 1.0, 9) == "short"
    lines = labels.wrapped("some words and " + long, 1.0, 9).split("\n")
    assert len(lines) > 1
    assert all(labels.text_width(line, 9) <= 1.0 for line in lines)


def test_rows_of_dots_by_hand(tmp_path: Path) -> None:
    """Check the order: dense models, then families and their variants, each the best first."""
    scores = {"isp_n0": 80.0, "random": 70.0, "isp": 90.0, "lth": 85.0, "one_shot": 84.0}
    records = [record(name, "0.9000", seed, score + seed) for name, score in scores.items() for seed in (0, 1)]
    records = [each for each in records if (each["variant"], each["seed"]) != ("lth", 1)]  # a run is missing
    records.append(record("dense", "0.0000", validation=95.0))
    figure, _ = Rows(records, tmp_path).drawings()["score_by_sparsity"]
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("dense", "isp", "isp_n0", "lth", "one_shot", "random")
    ]
    places = [float(place) for place in axes.get_yticks()]
    assert [round(a - b, 2) for a, b in itertools.pairwise(places)] == [1.45, 1, 1.45, 1.45, 1]
    assert {text.get_text() for text in axes.texts} == {"n = 1"}
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.get_lines() if line.get_markersize() == 5.5}  # type: ignore[index]
    assert means[places[1]] == 90.5


def test_the_scale_of_dots_includes_single_seeds() -> None:
    """The deviation of 80, 80 and 89 ends before 89."""
    rows = [
        {"score_mean": 83.0, "score_std": 5.2, "score_values": "80 80 89", "seeds": 3},
        {"score_mean": 82.0, "score_std": 1.0, "score_values": "81 82 83", "seeds": 3},
    ]
    for with_seeds in (False, True):
        axes = Figure().add_subplot()
        assert not set_score_scale(axes, rows, "score", "x", with_seeds=with_seeds)
        assert (axes.get_xlim()[1] > 89) == with_seeds


def test_dots_for_three_sparsities_lines_for_four() -> None:
    rows = [{"task": "t", "backbone": "b", "sparsity": f"0.{digit}000"} for digit in (0, 5, 7, 9)]
    assert dots.few(rows)
    assert not dots.few([*rows, {"task": "t", "backbone": "b", "sparsity": "0.9500"}])
    assert dots.few([*rows, {"task": "u", "backbone": "b", "sparsity": "0.9500"}])


def test_a_picture_has_a_palette_that_looks_like_the_figure() -> None:
    """No pixel of a figure with lines and a colour map differs by more than a 25th of the scale."""
    figure = drawing.message("Nothing to draw.")
    axes = figure.add_subplot()
    axes.plot(np.sin(np.linspace(0, 9, 200)), color="#d55e00")
    axes.imshow(np.linspace(0, 1, 64).reshape(8, 8), extent=(0, 200, -1, 1), aspect="auto", alpha=0.5)
    plain = io.BytesIO()
    with drawing.style():
        figure.savefig(plain, dpi=drawing.DPI)
    content = drawing.render(figure, "png")
    with Image.open(io.BytesIO(content)) as picture, Image.open(plain) as expected:
        assert picture.mode == "P"
        assert picture.size == expected.size
        difference = np.abs(np.array(picture.convert("RGB"), int) - np.array(expected.convert("RGB"), int))
    assert difference.max() <= 10
    assert len(content) < len(plain.getvalue()) / 2


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("**/*.png")), ids=lambda path: str(path.relative_to(ROOT)))
def test_committed_pictures_are_as_wide_as_figures_are(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.size[0] <= round(drawing.WIDTH * drawing.DPI)
