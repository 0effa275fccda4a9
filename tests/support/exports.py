"""Tickets in the form of the workflow, of small untrained models, in a folder like that of a study."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import torch

from isp import artifacts, masks, registry
from isp.backbones import Backbone, Pretrained
from isp.backbones import _bert as bert
from isp.costs import Cost
from isp.prunable import prunable_names
from isp.sparsity import parse_sparsity
from isp.tickets import Ticket, check_ticket
from isp.training import state_of
from tests.support.backbones import SMALL_BERT, small

SPARSITY = "0.9000"


def redefined(path: Path, **changed: Any) -> None:
    """Write a ticket again, with other entries of its origin or another method."""
    ticket = artifacts.load_ticket(path)
    method = changed.pop("method", ticket.method)
    artifacts.save_ticket(path, replace(ticket, method=method, origin={**ticket.origin, **changed}))


@cache
def pretrained_of(name: str) -> Pretrained:
    """Return a small backbone; a BERT has as many positions as its texts may have tokens."""
    plain = small(name)
    if not plain.vocabulary:
        return plain
    architecture = {**SMALL_BERT, "max_position_embeddings": 128}
    weights = dict(bert.build(architecture, 0).state_dict())
    return Pretrained(weights=weights, architecture=architecture, vocabulary=plain.vocabulary)


def workflow_ticket(root: Path, backbone: str, task: str, seed: int = 0, sparsity: str = SPARSITY) -> Path:
    """Write the pre-trained backbone and a ticket of magnitude pruning, and return the ticket's path."""
    made: Backbone = registry.load("backbone", backbone).BACKBONE
    pretrained = pretrained_of(backbone)
    weights_path = root / f"resources/backbones/{backbone}.safetensors"
    artifacts.save_backbone(weights_path, pretrained, {})
    model = made.initial(pretrained, registry.load("task", task).TASK, seed, random=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # as if it had been trained
    names, target = prunable_names(model, made.prunable), parse_sparsity(sparsity)
    weights = state_of(model).weights
    mask = masks.prune_by_magnitude({name: weights[name] for name in names}, target)
    masks.apply_(mask, weights)
    place = f"results/s/runs/{backbone}/{task}/seed{seed}/one_shot/{sparsity}/ticket.safetensors"
    origin = {"backbone": backbone, "task": task, "seed": seed, "architecture": pretrained.architecture}
    origin |= {"place": place, "training": {"steps": 20}, "device": "cpu"}
    ticket = Ticket(
        **{"method": "one_shot", "sparsity": Decimal(target), "mask": mask, "weights": weights, "origin": origin},
        retraining=Cost(steps=20, samples=640, flops=2 * 10**9, sparse_flops=10**9),
    )
    check_ticket(ticket)
    artifacts.save_ticket(root / place, ticket)
    return root / place


def write_record(ticket: Path, accuracy: float, content: str | None = None) -> None:
    """Write the record of a ticket beside it, as `isp evaluate` does.

    Args:
        ticket: The ticket's path.
        accuracy: Its score on validation and test examples.
        content: Digest of the scored ticket; None for this ticket.
    """
    header = artifacts.lineage.read_header(ticket)
    assert header is not None
    origin = header["about"]["origin"]
    score = {"accuracy": accuracy, "majority": 50.0}
    record = {key: origin[key] for key in ("backbone", "task", "seed")}
    record |= {"study": "s", "variant": "one_shot", "method": "one_shot", "sparsity": SPARSITY, "metrics": ["accuracy"]}
    record |= {"zero_weights": 9, "prunable_weights": 10, "validation": score, "test": score}
    record |= {"finding": header["about"]["finding"], "retraining": header["about"]["retraining"]}
    measured = dict.fromkeys(
        ("finding_seconds", "retraining_seconds", "evaluation_seconds", "startup_seconds", "peak_memory_mb"), 1.0
    )
    record |= {"rounds": [], "layers": [], "collapsed": [], "measured": {**measured, "jobs": 1, "device": "cpu"}}
    record |= {"ticket": {"file": str(ticket), "content": content or header["content"]}}
    ticket.with_name("metrics.json").write_text(json.dumps(record))
