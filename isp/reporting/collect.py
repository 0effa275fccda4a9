"""Convert records of tickets to flat rows, one function per CSV file. Rows keep the order of the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]
"""Record of one ticket, from the evaluate stage."""
Comparison = Mapping[str, Any]
"""Comparison of the masks of one run, from the compare_masks stage."""

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
    *(*TICKET, "zero_weights", "prunable_weights", "collapsed_layers", *SCORES, "chosen_on"),
    *(f"{part}_{key}" for part in ("finding", "retraining") for key in COST),
)
"""Columns of `metrics`. chosen_on is "validation" if the method chose among models by validation scores; or empty."""
TIMINGS = (*TICKET, *MEASURED)
"""Columns of `timings`."""
ROUNDS = (*RUN, "round", "sparsity", "changed", "agreement")
"""Columns of `rounds`."""
LAYERS = (*TICKET, "layer", "weights", "zero_weights")
"""Columns of `layers`."""
AGREEMENT = (*RUN, "round", "sparsity", "layer", "agreement")
"""Columns of `agreement`."""
_PAIR = ("study", "backbone", "task", "seed", "variant_a", "variant_b", "sparsity")
_OVERLAP = ("weights", "kept_a", "kept_b", "kept_both", "cosine", "jaccard", "hamming")
SIMILARITY = (*_PAIR, *_OVERLAP)
"""Columns of `similarity`."""
SIMILARITY_LAYERS = (*_PAIR, "layer", *_OVERLAP)
"""Columns of `similarity_layers`."""


def metrics(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per ticket with its scores and costs, all of which are the same in every run on such a machine."""
    return [
        {key: record[key] for key in (*TICKET, "zero_weights", "prunable_weights")}
        | {"collapsed_layers": len(record["collapsed"])}
        | _scores(record)
        | {"chosen_on": "validation" if any("evaluations" in event for event in record["rounds"]) else ""}
        | {f"{part}_{key}": record[part][key] for part in ("finding", "retraining") for key in COST}
        for record in records
    ]


def _scores(record: Record) -> dict[str, Any]:
    """Return the task's metric, the score of always answering the most frequent label, and a second metric if any."""
    parts = ("validation", "test")
    names = [*record["metrics"], None][:2]
    scores = {"metric": names[0]} | {part: record[part][names[0]] for part in parts}
    scores |= {f"majority_{part}": record[part]["majority"] for part in parts}
    second = {f"second_{part}": record[part][names[1]] if names[1] else "" for part in parts}
    return scores | {"second_metric": names[1] or ""} | second


def timings(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per ticket with its measurements, which differ between runs."""
    return [
        {key: record[key] for key in TICKET} | {key: record["measured"][key] for key in MEASURED} for record in records
    ]


def rounds(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per prune event of the methods that record which weights the denoisers changed."""
    return [run | {key: event[key] for key in ROUNDS[len(RUN) :]} for run, event, _ in _events(records)]


def agreement(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per layer of each prune event with weak masks; layers are in the model's order."""
    return [
        run | {"round": event["round"], "sparsity": event["sparsity"], "layer": name, "agreement": by_layer[name]}
        for run, event, layers in _events(records)
        if (by_layer := event["agreement_by_layer"])
        for name in layers
    ]


def _events(records: Iterable[Record]) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[str]]]:
    """Yield each prune event once, with the keys of its run and the names of its model's layers.

    Tickets of one variant and seed share prune events, so an event is contained in several records.
    """
    seen = set()
    for record in records:
        run = {key: record[key] for key in RUN}
        for event in record["rounds"]:
            if "changed" not in event:  # of a method without denoisers
                continue
            key = (*run.values(), event["round"], event["sparsity"])
            if key not in seen:
                seen.add(key)
                yield run, event, _names(record)


def layers(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per prunable layer of each ticket; layers are in the model's order."""
    return [
        {key: record[key] for key in TICKET} | {key: layer[key] for key in LAYERS[len(TICKET) :]}
        for record in records
        for layer in record["layers"]
    ]


def similarity(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Return the similarity of masks, one row per pair of variants of a run and sparsity that both have."""
    return [_named(run, pair) | {key: pair[key] for key in _OVERLAP} for run in comparisons for pair in run["pairs"]]


def similarity_layers(comparisons: Iterable[Comparison], records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the similarity of masks per layer; layers are in the model's order, as in the records of the tickets."""
    orders: dict[tuple[str, str], list[str]] = {}
    for record in records:
        orders.setdefault((record["backbone"], record["task"]), _names(record))
    rows = []
    for run in comparisons:
        order = orders[run["backbone"], run["task"]]
        for pair in run["pairs"]:
            for layer in sorted(pair["layers"], key=lambda layer: order.index(layer["layer"])):
                rows.append(_named(run, pair) | {key: layer[key] for key in ("layer", *_OVERLAP)})
    return rows


def _named(run: Comparison, pair: Mapping[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in _PAIR[:4]} | {key: pair[key] for key in _PAIR[4:]}


def _names(record: Record) -> list[str]:
    return [layer["layer"] for layer in record["layers"]]
