"""All paths of the workflow, as patterns with wildcards in braces, and the values that wildcards may have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from isp import registry

MANIFEST = "resources/manifests/{kind}/{name}.json"
SPLIT = "resources/splits/{task}.safetensors"
WEIGHTS = "resources/backbones/{backbone}.safetensors"
PREPARED = "resources/prepared/{backbone}/{task}/{split}.safetensors"

STUDY = "results/{study}"
DESCRIPTION = f"{STUDY}/study.json"
PLAN = f"{STUDY}/plan.json"
ASKED = ".snakemake/isp-studies/{study}.json"
"""Settings of the last run that change no result, so that the description of the study does not contain them."""
RUN = f"{STUDY}/runs/{{backbone}}/{{task}}/seed{{seed}}"
INITIAL = f"{RUN}/initial/{{initial}}.safetensors"
DENSE = f"{RUN}/dense/{{initial}}.safetensors"
REWIND_POINT = f"{RUN}/dense/{{initial}}.step{{step}}.safetensors"
STATE = f"{RUN}/{{variant}}/round{{round}}/state.safetensors"
ROUNDS_STATE = f"{RUN}/{{variant}}/rounds{{first}}-{{round}}/state.safetensors"
ROUND_MASK = f"{RUN}/{{variant}}/round{{round}}/to{{sparsity}}/mask.safetensors"
ONE_SHOT_MASK = f"{RUN}/{{variant}}/{{sparsity}}/mask.safetensors"
MEMBER = f"{RUN}/{{variant}}/{{sparsity}}/member{{member}}.safetensors"
SUBNETWORK = f"{RUN}/{{variant}}/{{sparsity}}/subnetwork{{member}}.safetensors"
MERGED = f"{RUN}/{{variant}}/{{sparsity}}/merged.safetensors"
MERGED_MASK = f"{RUN}/{{variant}}/{{sparsity}}/merged_mask.safetensors"
TICKET = f"{RUN}/{{variant}}/{{sparsity}}/ticket.safetensors"
SIMILARITY = f"{RUN}/similarity.json"
RECORD = f"{RUN}/{{variant}}/{{sparsity}}/metrics.json"

WILDCARDS = {
    "backbone": r"[a-z0-9_]+",
    "task": r"[a-z0-9_]+",
    "kind": "task|backbone",
    "name": r"[a-z0-9_]+",
    "seed": r"\d+",
    "variant": r"[a-z0-9][a-z0-9_.-]*",
    "initial": "pretrained|random",
    "sparsity": r"0\.\d{4}",
    "first": r"\d+",
    "round": r"\d+",
    "member": r"\d+",
    "step": r"\d+",
}
"""Patterns of wildcard values. A sparsity always has four decimals."""

NOTHING = r"(?!)"
"""Pattern that matches nothing, for a family without variants."""


def log(path: str) -> str:
    """Return the path of the log of the job that makes `path`; it mirrors the path below the study's folder."""
    folder = f"{STUDY}/logs"
    stem = path.removesuffix(".safetensors").removesuffix(".json")
    return f"{folder}/{stem.removeprefix(STUDY + '/')}.log"


class Wildcards(Protocol):
    """Wildcards of a job, as Snakemake passes them: all values are strings."""

    study: str
    backbone: str
    task: str
    kind: registry.Kind
    name: str
    seed: str
    variant: str
    initial: str
    sparsity: str
    first: str
    round: str
    member: str
    step: str


def fill(pattern: str, w: Wildcards, **changed: Any) -> str:
    """Fill a pattern with the wildcards of a job, some of them changed."""
    values: Mapping[str, Any] = {key: getattr(w, key) for key in _keys(pattern) if key not in changed}
    return pattern.format(**values, **{key: value for key, value in changed.items() if key in _keys(pattern)})


@cache
def _keys(pattern: str) -> tuple[str, ...]:
    return tuple(part.split("}")[0] for part in pattern.split("{")[1:])
