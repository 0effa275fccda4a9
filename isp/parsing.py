"""Bounded reading of YAML and JSON from outside; repeated keys, alias bombs and huge numbers are refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import yaml

MOST_VALUES = 1_000_000
"""Largest number of values in a text after resolving aliases; a few nested aliases can expand beyond any memory."""

MOST_DIGITS = 100
"""Largest number of characters of an integer."""


def load_yaml(text: str, name: str = "the text") -> Any:
    """Return the value that a YAML or JSON text describes.

    JSON goes through Python's own reader, which is a hundred times faster and joins the surrogate pairs with which JSON
    escapes characters beyond the Basic Multilingual Plane (YAML would leave them separate).

    Args:
        text: The text.
        name: Its name in error messages, such as the path of its file.

    Raises:
        yaml.YAMLError: If the text is not YAML, repeats a key in a mapping, has a value that contains itself, or has
            more than `MOST_VALUES` values.
    """
    if text.lstrip()[:1] in ("{", "["):
        try:
            hooks: dict[str, Any] = {"parse_float": _float, "parse_int": _int, "parse_constant": _refuse}
            return json.loads(text, **hooks, object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            pass
    loader = _Loader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values after resolving aliases (*x)")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:  # such as the date 2001-99-99
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _float(text: str) -> float | str:
    """Return the number as YAML 1.1 reads it: 1e-05, without a dot, is a text, which settings convert to a number."""
    return float(text) if "." in text else text


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")  # the YAML reader reports which key and where
    return values


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node, counting those of an alias at each of its occurrences."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # the count of a value that contains itself
        children = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        below = 0 if isinstance(node, yaml.ScalarNode) else sum(_count(child, known) for child in children)
        known[id(node)] = 1 + below
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses a mapping with a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping after checking its keys, before merge keys (`<<`) are resolved."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r:.200} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Construct an integer in any of YAML's bases."""
        if len(node.value) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"an integer of {len(node.value):,} characters", node.start_mark
            )
        number: int = super().construct_yaml_int(node)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
