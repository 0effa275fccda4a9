"""The contract of every task (discovered by file name), on made-up data in the layout of its source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from pyarrow import parquet

from isp import registry
from isp.backbones import Backbone
from isp.data.sources import HubDataset
from isp.definitions import label_of, task_of
from isp.errors import ConfigError, DataError
from isp.evaluation import evaluate
from isp.losses import default_loss
from isp.metrics import METRICS, majority, score
from isp.preparation import prepare, split
from isp.tasks import ImageTask, Task
from tests.support.backbones import small
from tests.support.data import imitate

TASKS = registry.names("task")
BACKBONE = {"pictures": "clip_tiny", "texts": "bert_base"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_splits_prepares_trains_and_is_scored(name: str, tmp_path: Path) -> None:
    task = imitate(registry.load("task", name).TASK, tmp_path)
    kind = BACKBONE[task.inputs]
    backbone: Backbone = registry.load("backbone", kind).BACKBONE
    pretrained = small(kind)
    parts, rule = split(name, task, tmp_path)
    assert rule == task.split
    assert not set(parts.train) & set(parts.validation)
    assert len(parts.train) + len(parts.validation) <= task.num_examples
    if task.split != "groups":
        assert len(parts.train) + len(parts.validation) == task.num_examples
    found = dict(prepare(name, task, backbone, pretrained, parts, tmp_path))
    assert list(found) == ["train", "validation", "test"]
    for part, chosen in (("train", parts.train), ("validation", parts.validation)):
        assert found[part]["index"].tolist() == chosen.tolist()
    sizes = {part: len(tensors["labels"]) for part, tensors in found.items()}
    assert all(len(tensor) == sizes[part] for part, tensors in found.items() for tensor in tensors.values())
    labels = torch.cat([tensors["labels"] for tensors in found.values()])
    assert labels.dtype == (torch.int64 if task.classes else torch.float32)
    if task.classes:
        assert labels.min() >= 0
        assert labels.max() < len(task.classes)

    model = backbone.initial(pretrained, task, 0, random=False)
    examples = backbone.examples(found["train"], pretrained.architecture, "crop")
    inputs, truth = examples.batch(torch.arange(8))
    assert model(inputs).shape == (8, task.num_outputs)
    loss = default_loss(model, (inputs, truth))
    loss.backward()
    assert torch.isfinite(loss)
    scores = evaluate(model, backbone.examples(found["test"], pretrained.architecture, "none"), task.metrics)
    assert list(scores) == list(task.metrics)
    assert all(-100 <= value <= 100 for value in scores.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_complete(name: str) -> None:
    task: Task = registry.load("task", name).TASK
    assert registry.summary("task", name)
    assert len(set(task.classes)) == len(task.classes) != 1
    assert 1 <= len(task.metrics) <= 2
    if isinstance(task, ImageTask):
        assert all(template.count("{}") == 1 for template in task.templates)
    if isinstance(task.source, HubDataset):
        assert len(task.source.revision) == 40  # a commit: what is fetched never changes
    for metric in task.metrics:  # the higher the better, and what is right scores 100
        outputs, labels = right_answers(task)
        assert score(metric, outputs, labels) == pytest.approx(100)
        assert score(metric, outputs[::-1], labels) < 60
        assert majority(metric, labels, task.num_outputs) < 75
    assert set(task.metrics) <= METRICS.keys()


def right_answers(task: Task) -> tuple[np.ndarray, np.ndarray]:
    if not task.classes:
        labels = np.linspace(0, 5, 20)
        return labels[:, None], labels
    labels = np.repeat(np.arange(len(task.classes)), [9, 11] if len(task.classes) == 2 else 3)
    return np.eye(len(task.classes))[labels], labels


def test_there_are_the_papers_fifteen() -> None:
    vision = {"cars", "gtsrb", "mnist", "svhn", "cifar10", "cifar100"}
    language = {"mnli", "qqp", "stsb", "wnli", "qnli", "mrpc", "rte", "sst2", "cola"}
    assert len(vision | language) == 15
    for names, inputs in ((vision, "pictures"), (language, "texts")):
        assert {registry.load("task", name).TASK.inputs for name in names} == {inputs}
    metrics = {name: registry.load("task", name).TASK.metrics[0] for name in language}
    assert metrics == dict.fromkeys(language, "accuracy") | {"stsb": "pearson", "cola": "matthews"}


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    task = imitate(registry.load("task", "rte").TASK, tmp_path)
    with pytest.raises(DataError, match=r"label 1 at example \d+; labels must be 0 to 0"):
        split("rte", replace(task, classes=("one",), metrics=()), tmp_path)
    with pytest.raises(DataError, match="the training split has 120 examples instead of 7"):
        split("rte", replace(task, num_examples=7), tmp_path)
    stsb = imitate(registry.load("task", "stsb").TASK, tmp_path)
    with pytest.raises(DataError, match="labels of classes must be integers, got float32"):
        split("stsb", replace(stsb, classes=("a", "b"), metrics=()), tmp_path)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    own = "{kind: texts, id: me/reviews, inputs: [title, body], classes: [bad, good], num_examples: 120, metrics: [f1]}"
    task = imitate(task_of(own), tmp_path)
    assert (tmp_path / "me/reviews/data/train-00000-of-00001.parquet").exists()
    assert len(split("reviews", task, tmp_path)[0].validation) == 12
    assert [label_of(text) for text in ("rte", own)] == ["rte", "me/reviews"]


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("kind: sounds", "kind = 'sounds': input should be 'pictures' or"),
        ("id: b", "id = 'b': must be owner/name, each of letters, digits, _, . and -"),
        ("classes: [a]", "classes: must be two or more, or none for a regression"),
        ("classes: [a, b, a, c, b]", "classes: each name must occur once, got 'a', 'b' repeatedly"),
        ("metrics: [acuracy]", "unknown metric for 2 classes 'acuracy'; did you mean 'accuracy'?"),
        ("metrics: [pearson]", "unknown metric for 2 classes 'pearson' (allowed: accuracy, f1, matthews)"),
        ("metrics: [f1], classes: [a, b, c]", "unknown metric for 3 classes 'f1' (allowed: accuracy, matthews)"),
        ("classes: []", "unknown metric for a regression 'accuracy' (allowed: pearson, spearman)"),
        (
            "kind: pictures, classes: [], metrics: [pearson]",
            "kind 'pictures' needs one column of inputs and two or more classes",
        ),
        ("kind: pictures, templates: [x]", "'x' needs one {}"),
        ("num_example: 9", "did you mean 'num_examples'?"),
        ("num_validation: 9", "num_validation = 9: must be in 1 to 8"),
        ("test: train", "a/b: train and test must be different splits, got 'train' for both"),
        ("split: groups", "group: needs split: groups, and vice versa, and works only for kind 'pictures'"),
        ("kind: pictures, split: groups, group: '('", "group: '(' is not a regular expression"),
        ("kind: pictures, split: groups, group: 'a'", "group: 'a' has no group, such as"),
        ("folder: ''", "folder = '': must be letters, digits, _, ., - and /, and begin with"),
        ("{kind", "not YAML"),
    ],
)
def test_what_is_wrong_with_a_definition(definition: str, message: str) -> None:
    good = {"kind": "texts", "id": "a/b", "num_examples": 9, "classes": ["a", "b"], "metrics": ["accuracy"]}
    if definition != "{kind":
        task_of(json.dumps(good))
        definition = json.dumps(good | yaml.safe_load(f"{{{definition}}}"))
    with pytest.raises(ConfigError) as caught:
        task_of(definition)
    assert message in str(caught.value)


def test_labels_of_a_regression(tmp_path: Path) -> None:
    """Whole numbers are numbers; what is none is refused."""
    task = imitate(registry.load("task", "stsb").TASK, tmp_path)
    path = tmp_path / "nyu-mll/glue/stsb/train-00000-of-00001.parquet"
    table = parquet.read_table(path)
    for labels, message in (([1, 2] * 60, ""), ([float("nan"), 2.0] * 60, "a label is not a finite number")):
        parquet.write_table(table.set_column(0, "label", pa.array(labels)), path)
        if message:
            with pytest.raises(DataError, match=message):
                split("stsb", task, tmp_path)
        else:
            parts, _ = split("stsb", task, tmp_path)
            backbone = registry.load("backbone", "bert_base").BACKBONE
            found = dict(prepare("stsb", task, backbone, small("bert_base"), parts, tmp_path))
            assert found["train"]["labels"].dtype == torch.float32


def test_inputs_of_the_wrong_kind(tmp_path: Path) -> None:
    task = imitate(registry.load("task", "rte").TASK, tmp_path)
    backbone: Backbone = registry.load("backbone", "clip_tiny").BACKBONE
    pictures = ImageTask(source=task.source, num_examples=120, classes=("a", "b"), templates=("{}",))
    parts, _ = split("rte", task, tmp_path)
    with pytest.raises(DataError, match="its inputs must be pictures, got '"):
        dict(prepare("rte", pictures, backbone, small("clip_tiny"), parts, tmp_path))


def test_prose_that_changed_since_pretraining_is_refused(tmp_path: Path) -> None:
    """Else what was pre-trained on could be among the test sentences."""
    task: Task = registry.load("task", "half_order").TASK
    backbone: Backbone = registry.load("backbone", "bert_tiny").BACKBONE
    parts, _ = split("half_order", task, tmp_path)
    other = replace(small("bert_tiny"), data="of another version")
    with pytest.raises(DataError, match=r"changed since the backbone was pre-trained .*stage: pretrain"):
        dict(prepare("half_order", task, backbone, other, parts, tmp_path))
