"""Data sets and pre-trained weights: shared by all studies, so they lie in `resources/`."""

from __future__ import annotations

from isp.config import Study
from isp.workflow import paths
from isp.workflow.dag import Dag
from isp.workflow.paths import Wildcards
from isp.workflow.rule import Rule


def _tasks(study: Study) -> list[str]:
    return list(dict.fromkeys(group.task for group in study.groups()))


def _backbones(study: Study, embedded: bool) -> list[str]:
    names = dict.fromkeys(group.backbone for group in study.groups())
    return [name for name in names if study.is_embedded(name) == embedded]


def _files(dag: Dag, w: Wildcards) -> str:
    """What a download is of."""
    return dag.options(**{w.kind: dag.study.defined(w.kind, w.name)})


DOWNLOAD = Rule(
    name="download",
    output=paths.MANIFEST,
    settings=_files,
    count=lambda study: len(_tasks(study)) + len(_backbones(study, embedded=False)),
)
SPLIT = Rule(
    name="split",
    output=paths.SPLIT,
    makes="split",
    settings=lambda dag, w: dag.task(w),
    versions=("task",),
    count=lambda study: len(_tasks(study)),
)
PRETRAIN = Rule(
    name="pretrain",
    output=paths.WEIGHTS,
    makes="backbone",
    versions=("training", "backbone", "protocol"),
    count=lambda study: len(_backbones(study, embedded=True)),
)
CONVERT = Rule(
    name="convert",
    output=paths.WEIGHTS,
    makes="backbone",
    settings=lambda dag, w: dag.backbone(w),
    versions=("backbone",),
    count=lambda study: len(_backbones(study, embedded=False)),
    memory=lambda sizes: 4 * sizes.weights,
)
PREPARE = Rule(
    name="prepare",
    output=paths.PREPARED,
    makes="examples",
    settings=lambda dag, w: f"{dag.backbone(w)} {dag.task(w)}",
    versions=("backbone", "task"),
    count=lambda study: len({(group.backbone, group.task) for group in study.groups()}),
    memory=lambda sizes: 4 * sizes.weights + sizes.prepared,
)
