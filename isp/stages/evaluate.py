"""Score a ticket on the validation examples and, once, on the official test split."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isp import artifacts, checkpoints, files, lineage, masks
from isp.artifacts import load_ticket
from isp.costs import Measured
from isp.definitions import backbone_of, task_of
from isp.evaluation import evaluate as score
from isp.metrics import majority
from isp.preparation import limited
from isp.settings import parse
from isp.stages._options import Backbone, Device, InstructionSet, Limits, Output, Task, Threads, mapping
from isp.stages._work import working
from isp.tasks import TaskLimits

VERSION = 3


def evaluate(
    ticket: Annotated[Path, typer.Option(help="The ticket to score, e.g. from `isp retrain` or `isp finetune_dense`.")],
    backbone: Backbone,
    task: Task,
    limits: Limits,
    validation: Annotated[Path, typer.Option(help="Prepared validation examples.")],
    test: Annotated[
        Path, typer.Option(help="Prepared examples of the official test split. Never choose anything by them.")
    ],
    cell: Annotated[
        dict[str, Any],
        typer.Option(parser=mapping, metavar="YAML", help="First entries of the record: study, seed, variant, …"),
    ],
    output: Output,
    threads: Threads = 1,
    device: Device = "cpu",
    instruction_set: InstructionSet = None,
) -> None:
    """Write the record of a ticket: scores in percent, sparsity counted on the weights, costs, layers, rounds."""
    allowed = parse(TaskLimits, limits, "--limits")
    with working(output, threads=threads, device=device, instruction_set=instruction_set) as work:
        told = {"backbone": backbone, "task": task, **{key: cell[key] for key in ("seed",) if key in cell}}
        told |= {key: value for key, value in lineage.cell(output).items() if key == "sparsity"}
        headers = lineage.check(output, told, [ticket, validation, test])
        loaded = load_ticket(ticket)
        backbone_, definition = backbone_of(backbone), task_of(task)
        architecture = loaded.origin["architecture"]
        model = backbone_.restore(loaded.weights, architecture).to(device)
        sources: tuple[tuple[artifacts.Part, Path, int | None], ...] = (
            ("validation", validation, allowed.num_validation),
            ("test", test, None),
        )
        scores: dict[str, dict[str, float]] = {}
        for part, path, num in sources:
            tensors = limited(artifacts.load_examples(path, part)[0], num)
            examples = backbone_.examples(
                {name: each.to(device) for name, each in tensors.items()}, architecture, "none"
            )
            best = majority(definition.metrics[0], tensors["labels"].numpy(), definition.num_outputs)
            scores[part] = score(model, examples, definition.metrics) | {"majority": best}
            scores[part] = {name: round(value, 4) for name, value in scores[part].items()}
        parameters = dict(model.named_parameters())
        layers: list[dict[str, Any]] = [
            {
                "layer": name,
                "weights": parameters[name].numel(),
                "zero_weights": parameters[name].numel() - masks.num_kept({name: parameters[name]}),
            }
            for name in parameters
            if name in loaded.mask
        ]
        collapsed = [layer["layer"] for layer in layers if layer["zero_weights"] == layer["weights"]]
        if collapsed:
            print(
                f"warning: layer collapse, all weights are zero in {', '.join(collapsed)}", file=sys.stderr, flush=True
            )
        record: dict[str, Any] = {
            **cell,
            "method": loaded.method,
            "sparsity": str(loaded.sparsity),
            "zero_weights": sum(layer["zero_weights"] for layer in layers),
            "prunable_weights": sum(layer["weights"] for layer in layers),
            "metrics": definition.metrics,
            **scores,
            "finding": asdict(loaded.finding),
            "retraining": asdict(loaded.retraining),
            "rounds": loaded.rounds,
            "layers": layers,
            "collapsed": collapsed,
            "ticket": {"file": str(ticket), "content": headers[str(ticket)].get("content")},
            "measured": _measured(loaded.origin["measured"], work.measured()),
        }
        files.write_json(output, record)
    checkpoints.forget(ticket)


def _measured(before: dict[str, Any], evaluation: Measured) -> dict[str, Any]:
    finding, retraining = (Measured(**before[part]) for part in ("finding", "retraining"))
    total = finding + retraining + evaluation
    return {
        "finding_seconds": finding.seconds,
        "retraining_seconds": retraining.seconds,
        "evaluation_seconds": evaluation.seconds,
        "startup_seconds": total.startup_seconds,
        "jobs": total.jobs,
        "peak_memory_mb": total.peak_memory_mb,
        "device": total.device,
    }
