"""Rules for datasets and pre-trained weights, which all studies share and which are therefore in `resources/`."""

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


def _downloads(study: Study) -> list[dict[str, str]]:
    tasks = [{"kind": "task", "name": name} for name in _tasks(study)]
    return tasks + [{"kind": "backbone", "name": name} for name in _backbones(study, embedded=False)]


def _preparations(study: Study) -> list[dict[str, str]]:
    places = dict.fromkeys((group.backbone, group.task) for group in study.groups())
    return [{"backbone": backbone, "task": task, "split": "train"} for backbone, task in places]


def _files(dag: Dag, w: Wildcards) -> str:
    """Format the option for the task or backbone of a download."""
    return dag.options(**{w.kind: dag.study.defined(w.kind, w.name)})


DOWNLOAD = Rule(
    name="download",
    output=paths.MANIFEST,
    settings=_files,
    jobs=_downloads,
    log="resources/logs/download/{kind}/{name}.log",
)
SPLIT = Rule(
    name="split",
    output=paths.SPLIT,
    makes="split",
    settings=lambda dag, w: dag.task(w),
    versions=("task",),
    jobs=lambda study: [{"task": name} for name in _tasks(study)],
    log="resources/logs/split/{task}.log",
)
PRETRAIN = Rule(
    name="pretrain",
    output=paths.WEIGHTS,
    makes="backbone",
    versions=("training", "backbone", "protocol"),
    jobs=lambda study: [{"backbone": name} for name in _backbones(study, embedded=True)],
    log="resources/logs/pretrain/{backbone}.log",
)
CONVERT = Rule(
    name="convert",
    output=paths.WEIGHTS,
    makes="backbone",
    settings=lambda dag, w: dag.backbone(w),
    versions=("backbone",),
    jobs=lambda study: [{"backbone": name} for name in _backbones(study, embedded=False)],
    log="resources/logs/convert/{backbone}.log",
    memory=lambda sizes: 4 * sizes.weights,
)
PREPARE = Rule(
    name="prepare",
    output=paths.PREPARED,
    makes="examples",
    settings=lambda dag, w: f"{dag.backbone(w)} {dag.task(w)}",
    versions=("backbone", "task"),
    jobs=_preparations,
    log="resources/logs/prepare/{backbone}/{task}.log",
    memory=lambda sizes: 4 * sizes.weights + sizes.prepared,
)
