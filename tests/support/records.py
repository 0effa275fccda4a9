"""Records of a synthetic study, and their rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from isp.files import read_csv, write_csv
from isp.reporting import collect, drawing, figures, mask_figures, paper_figures

LAYERS = [
    f"visual.transformer.resblocks.{block}.{name}"
    for block in range(2)
    for name in ("attn.in_proj_weight", "mlp.c_fc.weight")
]
NOMINAL = ["0.2000", "0.3600", "0.4880"]


def cost(steps: int) -> dict[str, int]:
    return {"steps": steps, "samples": 32 * steps, "flops": 10**9 * steps, "sparse_flops": 10**8 * steps}


def record(variant: str, sparsity: str, seed: int = 0, validation: float = 90.0, **more: Any) -> dict[str, Any]:
    return {
        "study": "s",
        "backbone": "b",
        "task": "t",
        "seed": seed,
        "variant": variant,
        "method": "one_shot" if variant == "one_shot" else variant.split("_")[0],
        "sparsity": sparsity,
        "zero_weights": 9,
        "prunable_weights": 10,
        "metrics": ["accuracy"],
        "validation": {"accuracy": validation, "majority": 10.0},
        "test": {"accuracy": validation - 2, "majority": 11.0},
        "finding": cost(100),
        "retraining": cost(200),
        "rounds": [],
        "layers": [
            {"layer": name, "weights": 100, "zero_weights": 10 * index + seed} for index, name in enumerate(LAYERS)
        ],
        "collapsed": [],
        "measured": {
            "finding_seconds": 60.0 + seed,
            "retraining_seconds": 7.5,
            "evaluation_seconds": 0.8,
            "startup_seconds": 3.1,
            "jobs": 40,
            "peak_memory_mb": 980,
            "device": "cpu",
        },
        **more,
    }


def way(target: str, look_aheads: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """Return the rounds of ISP that lead to a target, as in a record: nominal sparsities, then the target."""
    nominal = [sparsity for sparsity in NOMINAL if Decimal(sparsity) < Decimal(target)]
    return [
        {
            "round": index,
            "start": index,
            "stop": index + 1,
            "sparsity": sparsity,
            "changed": (0.01 * (index + 1) + 0.001 * seed) if look_aheads else 0.0,
            "agreement": (0.9 + 0.02 * seed) if look_aheads else None,
            "agreement_by_layer": (
                {name: 0.5 + 0.1 * layer + 0.01 * index + 0.02 * seed for layer, name in enumerate(LAYERS[::-1])}
                if look_aheads
                else None
            ),
        }
        for index, sparsity in enumerate([*nominal, target])
    ]


def study(seeds: Sequence[int] = (0, 1)) -> list[dict[str, Any]]:
    """Dense, one-shot without the higher sparsity, LTH, and ISP with and without look-aheads."""
    records = []
    for seed in seeds:
        records.append(record("dense", "0.0000", seed, 98.0 + seed, finding=cost(0)))
        records.append(record("one_shot", "0.4000", seed, 92.0 + 2 * seed, finding=cost(0)))
        for variant in ("isp_n0", "isp_n4"):
            for target, validation in (("0.4000", 95.0), ("0.5000", 93.0)):
                rounds = way(target, variant == "isp_n4", seed)
                records.append(record(variant, target, seed, validation + 3 * seed, rounds=rounds))
        lth = [{"round": 0, "sparsity": "0.2000", "steps": 300}, {"round": 1, "sparsity": "0.4000", "steps": 300}]
        records.append(record("lth", "0.4000", seed, 97.0, rounds=lth))
    return records


def overlap(weights: int, kept_a: int, kept_b: int, both: int) -> dict[str, Any]:
    return {
        **{"weights": weights, "kept_a": kept_a, "kept_b": kept_b, "kept_both": both},
        "cosine": round(both / math.sqrt(kept_a * kept_b), 6),
        "jaccard": round(both / (kept_a + kept_b - both), 6),
        "hamming": (kept_a + kept_b - 2 * both) / weights,
    }


def pair(a: str, b: str, sparsity: str, both: int) -> dict[str, Any]:
    """Return masks over 400 weights in four layers, sorted by name, that share `both` kept weights per layer."""
    kept = round(100 * (1 - float(sparsity)))
    layers = [{"layer": name, **overlap(100, kept, kept, both)} for name in sorted(LAYERS, reverse=True)]
    whole = overlap(400, 4 * kept, 4 * kept, 4 * both)
    return {"variant_a": a, "variant_b": b, "sparsity": sparsity, **whole, "layers": layers}


def comparisons(records: Sequence[dict[str, Any]], both: int = 30) -> list[dict[str, Any]]:
    """Comparisons of the masks of records, as the workflow makes them; each seed shares one more weight per layer."""
    runs: dict[tuple[str, str, int], dict[str, list[str]]] = {}
    for each in records:
        run = runs.setdefault((each["backbone"], each["task"], each["seed"]), {})
        if float(each["sparsity"]):
            run.setdefault(each["sparsity"], []).append(each["variant"])
    return [
        {
            **{"study": "s", "backbone": backbone, "task": task, "seed": seed},
            "pairs": [
                pair(a, b, sparsity, both + seed)
                for sparsity, variants in of_run.items()
                for a, b in itertools.combinations(variants, 2)
            ],
        }
        for (backbone, task, seed), of_run in runs.items()
    ]


class Rows:
    """Return the collected rows of records, as read back from CSV files."""

    def __init__(self, records: list[dict[str, Any]], folder: Path, both: int = 30) -> None:
        pairs = comparisons(records, both)
        made = {
            name: getattr(collect, name)(records) for name in ("metrics", "timings", "rounds", "layers", "agreement")
        }
        made |= {
            "similarity": collect.similarity(pairs),
            "similarity_layers": collect.similarity_layers(pairs, records),
        }
        for name, rows in made.items():
            columns = getattr(collect, name.upper())
            assert all(tuple(row) == columns for row in rows)
            write_csv(folder / f"{name}.csv", rows, columns)
        self.metrics = read_csv(folder / "metrics.csv", "collect")
        self.timings = read_csv(folder / "timings.csv", "collect")
        self.rounds = read_csv(folder / "rounds.csv", "collect")
        self.layers = read_csv(folder / "layers.csv", "collect")
        self.agreement = read_csv(folder / "agreement.csv", "collect")
        self.similarity = read_csv(folder / "similarity.csv", "collect")
        self.similarity_layers = read_csv(folder / "similarity_layers.csv", "collect")

    def drawings(self) -> dict[str, drawing.Drawing]:
        return {
            "score_by_sparsity": figures.score_by_sparsity(self.metrics),
            "score_by_cost": figures.score_by_cost(self.metrics),
            "denoisers": figures.denoisers(self.rounds, self.metrics),
            "agreement_by_layer": mask_figures.agreement_by_layer(self.agreement),
            "layer_sparsity": mask_figures.layer_sparsity(self.layers),
            "mask_similarity": mask_figures.mask_similarity(self.similarity),
            "mask_similarity_by_sparsity": mask_figures.mask_similarity_by_sparsity(self.similarity, self.metrics),
            "mask_similarity_by_layer": mask_figures.mask_similarity_by_layer(self.similarity_layers, self.metrics),
            "paper_figure_1": paper_figures.paper_figure_1(self.metrics),
            "paper_figure_3": paper_figures.paper_figure_3(self.metrics, self.similarity),
        }


def only(rows: Sequence[dict[str, Any]], **values: Any) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[key] == value for key, value in values.items())]
    return found
