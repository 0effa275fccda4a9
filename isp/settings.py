"""Base class of all settings, and the translation of validation errors into user-facing messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from isp.errors import ConfigError, shown, unknown

IN_WORDS = {
    r"^[a-z0-9][a-z0-9_.-]*$": "must be lower-case letters, digits, _, . and -, and begin with a letter or digit",
    r"^[a-z0-9_]+$": "must be lower-case letters, digits and _",
    r"^(cpu|cuda(:\d+)?)$": "must be cpu, cuda, or cuda:N with the number N of a GPU, such as cuda:0",
    r"^([\w.-]+/[\w.-]+)?$": "must be owner/name, each of letters, digits, _, . and -",
    r"^[\w.-]+/[\w.-]+$": "must be owner/name, each of letters, digits, _, . and -",
    r"^[\w.-]+$": "must be letters, digits, _, . and -",
    r"^\w[\w./-]*$": "must be letters, digits, _, ., - and /, and begin with a letter, digit or _",
}
"""What a text must be, by the pattern of the field."""
_NO_BOOLEAN = "must not be a boolean (YAML reads yes, no, on and off as booleans unless they are in quotes)"


class Settings(BaseModel):
    """Frozen, keyword-only settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _representable(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse values that a command line (NUL), UTF-8 (half a surrogate pair) or a tensor (long integers) lacks."""
        if value is None or isinstance(value, (bool, float)):
            return value
        for key, each in _leaves(str(info.field_name), value):
            if isinstance(each, str) and re.search("[\0\ud800-\udfff]", each):
                raise ValueError(f"{key}: {shown(each)} contains NUL or half of a surrogate pair")
            if isinstance(each, int) and not -(2**63) <= each < 2**63:
                raise ValueError(f"{key}: integers must fit into 64 bits, got {shown(each)}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse booleans, because YAML reads `yes` and `on` as true, and true would be accepted as 1."""
        if cls.model_fields[str(info.field_name)].annotation is bool:
            return value
        if isinstance(value, bool) or (isinstance(value, list) and any(isinstance(item, bool) for item in value)):
            raise ValueError(f"{info.field_name} = {shown(value)}: {_NO_BOOLEAN}")
        return value


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each text and number in a YAML value, including keys, with its key."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield key, name
            yield from _leaves(f"{key}.{name}", each)
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _leaves(f"{key}.{index}", each)
    else:
        yield key, value


T = TypeVar("T", bound=BaseModel)


def parse(model: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """Validate `values` as `model`.

    Args:
        model: Settings class.
        values: Keys and values from a file, the command line or a call.
        where: Origin of the values ("config/config.yaml", "settings of method 'isp'"), which begins the message.

    Raises:
        ConfigError: If a key is invalid; the message names every offending key with its value and the allowed ones.
    """
    try:
        return model.model_validate(dict(values or {}))
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, model)}") from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one clause for each problem that pydantic reports, separated by semicolons."""
    clauses = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            *path, last = problem["loc"]
            clauses.append(unknown(f"key {'.'.join(map(str, path))}".rstrip(), last, _keys_at(model, path)))
        elif problem["type"] == "missing":
            clauses.append(f"missing key {key!r}")
        elif problem["type"] in ("value_error", "assertion_error"):
            text = str(problem["ctx"]["error"])
            if key and text.startswith(str(problem["loc"][-1])):
                key = ".".join(map(str, problem["loc"][:-1]))
                clauses.append(f"{key}.{text}" if key else text)
            else:
                clauses.append(f"{key}: {text}" if key else text)
        else:
            value, message = problem["input"], problem["msg"][0].lower() + problem["msg"][1:]
            if problem["type"] == "string_pattern_mismatch":
                message = IN_WORDS.get(problem["ctx"]["pattern"], message)
            elif problem["type"] == "string_type" and isinstance(value, bool):
                message = _NO_BOOLEAN
            if problem["loc"][-1:] == ("[key]",):  # a key of a mapping, which the place before it repeats
                clauses.append(f"{'.'.join(map(str, problem['loc'][:-2]))}: the name {shown(value)} {message}")
            else:
                clauses.append(f"{key} = {shown(value)}: {message}")
    return "; ".join(clauses)


def _keys_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    """Return the keys allowed at `path` inside `model`, if nested models define them."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        nested = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if models:
            model = models[0]
    return list(model.model_fields)
