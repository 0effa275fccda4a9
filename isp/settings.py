"""The base of every block of settings, and the translation of validation errors into text for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from isp.errors import ConfigError, shown, unknown


class Settings(BaseModel):
    """Frozen, keyword-only settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _representable(cls, value: Any, info: ValidationInfo) -> Any:
        """A command line cannot hold NUL, UTF-8 no half of a surrogate pair, and a tensor no longer integer."""
        for key, each in _leaves(str(info.field_name), value):
            if isinstance(each, str) and re.search("[\0\ud800-\udfff]", each):
                raise ValueError(f"{key}: {shown(each)} has a NUL or half of a surrogate pair")
            if isinstance(each, int) and not -(2**63) <= each < 2**63:
                raise ValueError(f"{key}: integers must fit into 64 bits, got {shown(each)}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, and true would pass for 1."""
        if cls.model_fields[str(info.field_name)].annotation is bool:
            return value
        if isinstance(value, bool) or (isinstance(value, list) and any(isinstance(item, bool) for item in value)):
            raise ValueError(f"{info.field_name} = {shown(value)}: a truth value is not allowed here")
        return value


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each text and number in a value as YAML gives it, keys included, after its own key."""
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
        model: the settings class.
        values: keys and values as read from a file, the command line or a call.
        where: what the values belong to ("config/config.yaml", "settings of method 'isp'"); begins the message.

    Raises:
        ConfigError: names every offending key with its value, what is wrong, and what is allowed.
    """
    try:
        return model.model_validate(dict(values or {}))
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, model)}") from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause for each problem that pydantic found, separated by semicolons."""
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
            clauses.append(text if not key or text.startswith(str(problem["loc"][-1])) else f"{key}: {text}")
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            clauses.append(f"{key} = {shown(problem['input'])}: {message}")
    return "; ".join(clauses)


def _keys_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    """The keys allowed at `path` inside `model`, as far as nested models say."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        nested = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if models:
            model = models[0]
    return list(model.model_fields)
