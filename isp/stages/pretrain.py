"""Pre-train an embedded backbone; the weights of others are downloaded and converted."""

from __future__ import annotations

from dataclasses import asdict

from isp import artifacts, registry
from isp.stages._options import Backbone, Output
from isp.stages._work import working
from isp.training import VERSION as TRAINING_VERSION

VERSION = 2


def pretrain(backbone: Backbone, output: Output) -> None:
    """Pre-train a backbone from random weights by its own protocol, seed 0, on one thread of the CPU.

    All studies share what it writes, so nothing of a study can change it.
    """
    module = registry.load("backbone", backbone)
    with working(output) as work:
        pretrained = module.pretrain(0, work.progress)
        about = {
            "stage": "pretrain",
            "version": VERSION,
            "training_version": TRAINING_VERSION,
            "backbone": backbone,
            "backbone_version": module.BACKBONE.version,
            "pretraining": module.PRETRAINING.model_dump(mode="json"),
            "measured": asdict(work.measured()),
        }
        artifacts.save_backbone(output, pretrained, about)
