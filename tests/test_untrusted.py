"""Text and names from outside: what is printed of them, and which are refused."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from isp.untrusted import check_file_name, printable


def test_what_cannot_steer_a_terminal_is_unchanged() -> None:
    text = "Zwölf Größen,\tnaïve: 5 µm ± 2 → 中文 עברית 🏳️‍🌈 𝒳 \N{NO-BREAK SPACE}\nnext line \\x1b"
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m \x90 \x85", r"\x9b31m \x90 \x85"),
        ("over\rwritten\b\x7f\0", r"over\rwritten\x08\x7f\x00"),
        ("\u202egpj.exe\u2066\u200f", r"\u202egpj.exe\u2066\u200f"),
        ("a\ud800b\u2028", r"a\ud800b\u2028"),
        (ValueError("\x1b"), r"\x1b"),
    ],
)
def test_what_can_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_every_control_character_is_escaped() -> None:
    controls = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Cc", "Cs")]
    bidi = [
        chr(code)
        for code in range(0xD800)
        if unicodedata.bidirectional(chr(code)) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]
    assert len(controls) == 65 + 2048
    assert len(bidi) == 9
    raw = [each for each in [*controls, *bidi] if printable(each) == each]
    assert raw == ["\t", "\n"]


@pytest.mark.parametrize(
    "name", ["a", "data/train-00000-of-00001.parquet", ".gitattributes", "..a/b..", "é[1]/x y.txt"]
)
def test_names_that_are_safe(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(None, 7, b"a", ["a"], "", ".", "..", "/a", "//a", "a/", "a//b", "./a", "a/./b", "../a", "a/..", "a/../b"),
        *("a\\b", "a\nb", "a\tb", "a\0", "\x1b", "a\x85", "\u202ea", "\ud800", "é" * 128, "a/" + "b" * 256),
    ],
)
def test_names_that_are_not(name: object) -> None:
    with pytest.raises(ValueError, match=r"file name") as caught:
        check_file_name(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 320
