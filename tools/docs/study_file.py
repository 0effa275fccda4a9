"""The reference of study files and of the settings of methods, from the models that validate them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from isp.config import Block, Protocol, Study, Variant
from isp.definitions import BackboneDefinition, TaskDefinition
from isp.tasks import TaskLimits
from tools.docs.markdown import code, prose, table

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Keys of a study", Study),
    ("training.<backbone>", Protocol),
    ("tasks.<task>", TaskLimits),
    ("variants.<name>", Variant),
    ("grid", Block),
    ("define.backbones.<name>", BackboneDefinition),
    ("define.tasks.<name>", TaskDefinition),
)
"""The blocks of a study file, and their models."""
_ANCHORS = {
    "Protocol": "training",
    "TaskLimits": "tasks",
    "Variant": "variants",
    "Block": "grid",
    "Definitions": "define",
    "BackboneDefinition": "define",
    "TaskDefinition": "define-tasks",
}
_WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "`true` or `false`", "null": "`null`"}
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def page() -> str:
    """Return the page that describes every key of a study file."""
    parts = [
        "# Study file",
        "A study file is YAML. It names variants of methods and a grid of backbones, tasks, sparsities and seeds. It "
        "is complete: it inherits nothing from another file. An unknown key or a value that is not allowed is an error "
        "that names the key, the value and what is allowed, before anything runs. "
        "[Run a study](../how-to/studies.md) has an example. This page is generated from the code that reads the file.",
    ]
    for title, model in SECTIONS:
        anchor = _ANCHORS.get(model.__name__, "")
        parts += [f"## `{title}` {{#{anchor}}}" if anchor else f"## {title}", prose(model.__doc__ or "")]
        parts.append(keys(model))
    return "\n\n".join(parts)


def keys(model: type[BaseModel]) -> str:
    """Return the table of the keys of a model."""
    schema = model.model_json_schema()
    rows = [
        (code(name), _type(key), _default(name, key, schema.get("required", [])), prose(key.get("description", "")))
        for name, key in schema.get("properties", {}).items()
    ]
    return table(("key", "value", "default", "meaning"), rows)


def _type(key: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in key:
        name = key["$ref"].rpartition("/")[2]
        return f"[keys](#{_ANCHORS[name]})"
    if "enum" in key:
        return ", ".join(code(str(value)) for value in key["enum"])
    if "const" in key:
        return code(str(key["const"]))
    if "anyOf" in key:
        return " or ".join(dict.fromkeys(_type(each) for each in key["anyOf"]))
    if key.get("type") == "array":
        items = key.get("prefixItems")
        if items:
            return f"list of {len(items)}: {', '.join(_type(item) for item in items)}"
        return f"list of {_type(key['items'])}" if key.get("items") else "list"
    if key.get("type") == "object":
        inner = next(iter(key.get("patternProperties", {}).values()), None) or key.get("additionalProperties")
        return f"by name: {_type(inner)}" if isinstance(inner, Mapping) and inner else "keys and values"
    return " ".join([_WORDS.get(str(key.get("type")), "any value"), *_limits(key)])


def _limits(key: Mapping[str, Any]) -> Iterator[str]:
    bounds = [f"{sign} {key[name]:,}" for name, sign in _BOUNDS if name in key]
    if bounds:
        yield ", ".join(bounds)


def _default(name: str, key: Mapping[str, Any], required: list[str]) -> str:
    if name in required:
        return "required"
    default = key.get("default", "")
    if default in ({}, "") or (isinstance(default, dict) and not any(default.values())):
        return ""
    if isinstance(default, int) and default < key.get("minimum", default):  # stands for a key that is left out
        return ""
    return code(json.dumps(default, ensure_ascii=False).strip('"'))
