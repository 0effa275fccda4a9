"""Required contents of the JSON files of a study; further keys are allowed."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from isp.errors import shown

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
_REPORTED = 3
"""Number of problems that a message names."""


class Cost(BaseModel):
    """A cost, see `isp.costs.Cost`."""

    steps: Number
    samples: Number
    flops: Number
    sparse_flops: Number


class Layer(BaseModel):
    """A layer of a ticket."""

    layer: str
    weights: Annotated[Number, Field(gt=0)]
    zero_weights: Number


class Measured(BaseModel):
    """Measurements of a ticket's jobs."""

    finding_seconds: Number
    retraining_seconds: Number
    evaluation_seconds: Number
    startup_seconds: Number
    jobs: Number
    peak_memory_mb: Number
    device: str


class Event(BaseModel):
    """A prune event; events of methods with denoisers have all of these keys."""

    round: Count = 0
    sparsity: str = ""
    changed: Number | None = None
    agreement: Number | None = None
    agreement_by_layer: dict[str, Number | None] | None = None

    @model_validator(mode="after")
    def _check(self) -> Event:
        lacking = sorted(type(self).model_fields.keys() - self.model_fields_set)
        if "changed" in self.model_fields_set and lacking:
            raise ValueError(f"missing key {', '.join(lacking)}")
        return self


class Record(BaseModel):
    """Record of a ticket, written by `isp evaluate`."""

    study: str
    backbone: str
    task: str
    seed: Count
    variant: str
    method: str
    sparsity: Annotated[str, Field(pattern=r"^0\.\d{4}$")]
    zero_weights: Number
    prunable_weights: Number
    metrics: Annotated[list[str], Field(min_length=1)]
    validation: dict[str, Number]
    test: dict[str, Number]
    finding: Cost
    retraining: Cost
    rounds: list[Event]
    layers: list[Layer]
    collapsed: list[str]
    measured: Measured

    @model_validator(mode="after")
    def _check(self) -> Record:
        for part, scores in (("validation", self.validation), ("test", self.test)):
            for name in (*self.metrics[:2], "majority"):
                if name not in scores:
                    raise ValueError(f"missing key {part}.{name}")
        names = {layer.layer for layer in self.layers}
        for event in self.rounds:
            lacking = sorted(names - event.agreement_by_layer.keys()) if event.agreement_by_layer else []
            if lacking:
                raise ValueError(f"missing key rounds.agreement_by_layer.{lacking[0]}")
        return self


class Similarity(BaseModel):
    """Similarity of two masks."""

    weights: Annotated[Number, Field(gt=0)]
    kept_a: Number
    kept_b: Number
    kept_both: Number
    cosine: Number
    jaccard: Number
    hamming: Number


class LayerSimilarity(Similarity):
    """Similarity of two masks in one layer."""

    layer: str


class Pair(Similarity):
    """Two tickets of one sparsity."""

    variant_a: str
    variant_b: str
    sparsity: Annotated[str, Field(pattern=r"^0\.\d{4}$")]
    layers: list[LayerSimilarity]


class Comparison(BaseModel):
    """Comparison of the masks of a run, written by `isp compare_masks`."""

    study: str
    backbone: str
    task: str
    seed: Count
    pairs: list[Pair]


class Work(BaseModel):
    """Planned jobs and their work."""

    jobs: Count
    steps: Number
    flops: Number
    seconds: Number


class RuleWork(Work):
    """Planned jobs of a rule and their work."""

    rule: str


class VariantWork(Work):
    """Planned jobs of a variant and their work, and the work if nothing were shared (`alone`)."""

    backbone: str
    variant: str
    steps_alone: Number
    flops_alone: Number


class Plan(BaseModel):
    """Plan written by `isp plan --output`, as far as other code reads it."""

    parallel: Annotated[int, Field(strict=True, ge=1)]
    rules: list[RuleWork]
    variants: list[VariantWork]
    total: Work


class DescribedStudy(BaseModel):
    """A study file with every default."""

    study: str | None = None
    training: dict[str, dict[str, Any]] | None = None
    tasks: dict[str, dict[str, Any]] | None = None
    define: dict[str, dict[str, dict[str, Any]]] | None = None


class DescribedVariant(BaseModel):
    """A variant."""

    settings: dict[str, Any] | None = None
    by_backbone: dict[str, dict[str, Any]] | None = None


class Provenance(BaseModel):
    """Packages and other conditions under which a study was run."""

    packages: dict[str, Any] | None = None


class Description(BaseModel):
    """Description of a study, written by `isp describe`, as far as the page shows it."""

    study: DescribedStudy | None = None
    question: str | None = None
    variants: dict[str, DescribedVariant] | None = None
    tasks: dict[str, dict[str, Any]] | None = None
    provenance: Provenance | None = None


class ManifestEntry(BaseModel):
    """A downloaded file."""

    file: str
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """Manifest written by `isp download`."""

    files: list[ManifestEntry]


def mismatch(content: Any, shape: Any) -> str:
    """Describe the wrong keys of a file's content; return an empty text if there are none."""
    try:
        _adapter(shape).validate_python(content)
    except ValidationError as error:
        clauses = []
        for problem in error.errors()[:_REPORTED]:
            key = ".".join(str(part) for part in problem["loc"]) or "the content"
            if problem["type"] == "missing":
                clauses.append(f"missing key {key}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                clauses.append(f"{key} = {shown(problem['input'])}: {message[0].lower()}{message[1:]}")
        return "; ".join(clauses)
    return ""


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)
