"""Texts that people and programs write, and those that nobody writes."""

from __future__ import annotations

import json

import pytest
import yaml

from isp.parsing import load_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, None, "x"], "b": {}}, ["\U0001f600", "\u00fc", "{x}"], {"rate": "1e-05", "n": 10**90}, [[[]]]],
)
def test_json_and_yaml_of_the_same_values(value: object) -> None:
    assert load_yaml(json.dumps(value)) == load_yaml(json.dumps(value, ensure_ascii=False)) == value
    assert load_yaml(yaml.safe_dump(value)) == value


def test_numbers_are_yamls_also_in_json() -> None:
    """A number without a dot is a text in YAML 1.1; headers of artifacts stay what they were."""
    text = json.dumps({"a": 1e-05, "b": 2.5e-7, "c": 3})
    assert load_yaml(text) == yaml.safe_load(text) == {"a": "1e-05", "b": 2.5e-7, "c": 3}


def test_aliases_save_repetition() -> None:
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    assert load_yaml("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 1,000,000 values after resolving aliases"),
        (MERGED, "more than 1,000,000 values after resolving aliases"),
        ("&a [*a]", "more than 1,000,000 values"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 10_000, "nested too deeply"),
        ("{a: 1, a: 2}", "the key 'a' occurs twice"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "an integer of 5,000 characters"),
        ('{"a": ' + "9" * 5000 + "}", "an integer of 5,000 characters"),
        ("a: 0x" + "f" * 9998, "an integer of 10,000 characters"),
        ("? [a]\n: b", "unhashable key"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_what_no_person_writes(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        load_yaml(text)
