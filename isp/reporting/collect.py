"""From the records of tickets to flat rows, one kind a CSV file; rows keep the order of the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]
"""What the evaluate stage wrote about one ticket."""

RUN = ("study", "backbone", "task", "seed", "variant", "method")
TICKET = (*RUN, "sparsity")
COST = ("steps", "samples", "flops", "sparse_flops")
MEASURED = (
    *("finding_seconds", "retraining_seconds", "evaluation_seconds", "startup_seconds"),
    *("jobs", "peak_memory_mb", "device"),
)

SCORES = (
    *("metric", "validation", "test", "majority_validation", "majority_test"),
    *("second_metric", "second_validation", "second_test"),
)
METRICS = (
    *(*TICKET, "zero_weights", "prunable_weights", *SCORES),
    *(f"{part}_{key}" for part in ("finding", "retraining") for key in COST),
)
"""Columns of `metrics`."""
TIMINGS = (*TICKET, *MEASURED)
"""Columns of `timings`."""
ROUNDS = (*RUN, "round", "sparsity", "changed", "agreement")
"""Columns of `rounds`."""
LAYERS = (*TICKET, "layer", "weights", "zero_weights")
"""Columns of `layers`."""


def metrics(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row a ticket with its scores and costs: only what is the same in every run on such a machine."""
    return [
        {key: record[key] for key in (*TICKET, "zero_weights", "prunable_weights")}
        | _scores(record)
        | {f"{part}_{key}": record[part][key] for part in ("finding", "retraining") for key in COST}
        for record in records
    ]


def _scores(record: Record) -> dict[str, Any]:
    """The task's metric, what always answering the most frequent label would score, and a second metric if any."""
    parts = ("validation", "test")
    names = [*record["metrics"], None][:2]
    found = {"metric": names[0]} | {part: record[part][names[0]] for part in parts}
    found |= {f"majority_{part}": record[part]["majority"] for part in parts}
    second = {f"second_{part}": record[part][names[1]] if names[1] else "" for part in parts}
    return found | {"second_metric": names[1] or ""} | second


def timings(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row a ticket with what was measured, which no two runs share."""
    return [
        {key: record[key] for key in TICKET} | {key: record["measured"][key] for key in MEASURED} for record in records
    ]


def rounds(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row for each prune event of the methods that record what the denoisers changed.

    Tickets of one variant and seed share the events on their way, so each event comes up in several records; it is
    one row here.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        for event in record["rounds"]:
            if "changed" in event:
                row = {key: record[key] for key in RUN} | {key: event[key] for key in ROUNDS[len(RUN) :]}
                rows.setdefault((*(record[key] for key in RUN), event["round"], event["sparsity"]), row)
    return list(rows.values())


def layers(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row for each prunable layer of each ticket, layers in the model's order."""
    return [
        {key: record[key] for key in TICKET} | {key: layer[key] for key in LAYERS[len(TICKET) :]}
        for record in records
        for layer in record["layers"]
    ]
