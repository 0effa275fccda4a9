"""Convert a downloaded model to the form that all backbones share: weights, architecture, vocabulary."""

from __future__ import annotations

from isp import artifacts
from isp.definitions import backbone_of
from isp.errors import ConfigError
from isp.stages._options import Backbone, DataRoot, Manifest, Output
from isp.stages._work import check_manifest, inputs, working

VERSION = 1


def convert(backbone: Backbone, data_root: DataRoot, manifest: Manifest, output: Output) -> None:
    """Read the files, check that they are those of the backbone's model, and write them as one fp32 artifact."""
    backbone_ = backbone_of(backbone)
    if backbone_.source is None:
        raise ConfigError(f"backbone {backbone!r} has no files to convert; pre-train it instead (isp pretrain)")
    with working(output):
        check_manifest(manifest, data_root)
        pretrained = backbone_.convert(backbone_.source.where(data_root))
        about = {"stage": "convert", "version": VERSION, "backbone": backbone, "backbone_version": backbone_.version}
        artifacts.save_backbone(output, pretrained, about | inputs(output, manifest=manifest))
