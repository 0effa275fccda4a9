"""Pre-train an embedded backbone. The weights of all other backbones are downloaded and converted."""

from __future__ import annotations

from dataclasses import asdict

from isp import artifacts, registry
from isp.stages._options import Backbone, InstructionSet, Output
from isp.stages._work import working
from isp.training import VERSION as TRAINING_VERSION

VERSION = 3


def pretrain(backbone: Backbone, output: Output, instruction_set: InstructionSet = None) -> None:
    """Pre-train a backbone from random weights by its own protocol, with seed 0, on one CPU thread.

    All studies share the result, so it must not depend on a study: AVX2 kernels are used on every CPU that supports
    them, whatever the instruction set of the study.
    """
    module = registry.load("backbone", backbone)
    with working(output, instruction_set=instruction_set) as work:
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
