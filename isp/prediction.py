"""Labels and probabilities of texts and images, predicted by a ticket of the workflow or an exported folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from isp import artifacts, exported
from isp.acceleration import Report, accelerate
from isp.errors import ConfigError, DataError, IspError, reason
from isp.exported import Predictor
from isp.files import check_regular
from isp.workflow_tickets import WorkflowTicket

VALUE = "value"
OPTIONS = {"texts": "--text", "pictures": "--image"}


def predict(
    predictor: Predictor, texts: Sequence[str] = (), seconds: Sequence[str] = (), images: Sequence[Path] = ()
) -> list[list[tuple[str, float]]]:
    """Classify texts, pairs of texts, or images.

    Args:
        predictor: Predictor from `load_predictor`.
        texts: Texts, or the first ones of pairs.
        seconds: Second texts of pairs, in the same number.
        images: Paths of images.

    Returns:
        For each input its labels and their probabilities, highest first; for a model with one output (a regression)
        its value, under `VALUE`. The probabilities are the softmax of the logits, or, if an input may have several
        labels, the sigmoid of each.

    Raises:
        ConfigError: If the model takes other inputs.
        DataError: If a file is not an image.
        IspError: If the model cannot compute the inputs.
    """
    inputs = predictor.prepare(_columns(predictor, texts, seconds, images))
    try:
        logits = predictor.logits(inputs).float()
    except Exception as error:  # any error of the library's code
        name = type(predictor.model).__name__
        raise IspError(f"the model: a {name} that cannot compute these inputs ({reason(error)})") from None
    if not predictor.labels:
        return [[(VALUE, float(row[0]))] for row in logits]
    shares = logits.sigmoid() if predictor.multi_label else logits.softmax(dim=-1)
    rows = [zip(predictor.labels, row.tolist(), strict=True) for row in shares]
    return [sorted(row, key=lambda score: -score[1]) for row in rows]


def accelerated(
    predictor: Predictor, texts: Sequence[str] = (), seconds: Sequence[str] = (), images: Sequence[Path] = ()
) -> tuple[Predictor, Report]:
    """Accelerate the model of a predictor for some inputs (`isp.accelerate`).

    Args:
        predictor: Predictor from `load_predictor`.
        texts: Texts, see `predict`.
        seconds: Second texts of pairs, see `predict`.
        images: Paths of images, see `predict`.

    Raises:
        ConfigError: If the model takes other inputs, or has no sparse layers.
        DataError: If a file is not an image.
        IspError: If the outputs of the accelerated model differ.
    """
    inputs = predictor.prepare(_columns(predictor, texts, seconds, images))
    model, report = accelerate(predictor.model, inputs, forward=predictor.forward)
    return replace(predictor, model=model), report


def _columns(
    predictor: Predictor, texts: Sequence[str], seconds: Sequence[str], images: Sequence[Path]
) -> list[list[str]]:
    given = {"--text": texts, "--image": images}
    needed = OPTIONS[predictor.inputs or "texts"]
    other = next(option for option in given if option != needed)
    if given[other] or (seconds and needed == "--image"):
        kind = "texts" if needed == "--text" else "images"
        raise ConfigError(f"{other if given[other] else '--second'}: this model takes {kind}; give them by {needed}")
    if not given[needed]:
        raise ConfigError(f"nothing to predict: give {needed}, once or several times")
    if needed == "--image":
        for path in images:
            _check_image(path)
        return [[str(path) for path in images]]
    if predictor.num_columns == 1 and seconds:
        raise ConfigError("--second: this model takes single texts, not pairs; give each by --text alone")
    if predictor.num_columns == 2 and not seconds:
        raise ConfigError("--text: this model takes pairs of texts; give the second of each pair by --second")
    if seconds and len(seconds) != len(texts):
        raise ConfigError(f"--second: given {len(seconds)} times, but --text {len(texts)} times; pairs need both")
    return [list(texts), list(seconds)] if seconds else [list(texts)]


def _check_image(path: Path) -> None:
    """Check that a file is an image.

    Raises:
        DataError: If it is not an image.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged, or in a format that Pillow cannot read"
        raise DataError(f"{path}: not an image ({reason}); give a file such as PNG or JPEG") from None


def load_predictor(source: Path, weights: Path | None = None) -> Predictor:
    """Load a ticket of the workflow or an exported folder.

    Args:
        source: File of the ticket, or the folder.
        weights: File of the pre-trained backbone of a ticket; None: that of the study.

    Raises:
        ArtifactError: If the ticket or its pre-trained backbone is missing or damaged.
        ConfigError: If a ticket or folder has no task or tokenizer.
        IspError: If the folder was not exported, or cannot be loaded.
    """
    if not source.is_dir():
        return _of_ticket(WorkflowTicket.read(source), weights)
    library = exported.library_of(source)
    if library is None:
        raise IspError(f"{source}: not written by `isp export`, because it has none of {', '.join(exported.CONFIGS)}")
    if library == "safetensors":
        raise ConfigError(f"{source}: contains the weights of your own model, without a task or labels")
    compact = (source / exported.TICKET).exists()
    kept = artifacts.load_ticket(source / exported.TICKET).weights if compact else None
    with _named(source, library):
        predictor = exported.load(source, kept)
    if not predictor.inputs:
        raise ConfigError(f"{source}: a {type(predictor.model).__name__} without a tokenizer or labels")

    def prepare(columns: Sequence[Sequence[str]]) -> Any:
        with _named(source, library):
            return predictor.prepare(columns)

    return replace(predictor, prepare=prepare)


@contextmanager
def _named(source: Path, library: str) -> Iterator[None]:
    """Convert the errors of a library, which may be of any kind, to one that names the folder.

    Raises:
        IspError: If the library raised an error.
    """
    try:
        yield
    except Exception as error:
        raise IspError(f"{source}: {library} cannot use it ({reason(error)})") from None


def _of_ticket(source: WorkflowTicket, weights: Path | None) -> Predictor:
    texts = source.task.inputs == "texts"
    pretrained = source.pretrained(weights) if texts else source.architecture

    def prepare(columns: Sequence[Sequence[str]]) -> Any:
        if texts:
            return source.inputs(columns, pretrained, "--text")
        one_by_one = [source.inputs([[Path(path).read_bytes()]], pretrained, path) for path in columns[0]]
        return torch.cat(one_by_one)  # the enlargement of a small image would depend on images prepared with it

    return Predictor(
        model=source.model(),
        forward=_call,
        prepare=prepare,
        inputs=source.task.inputs,
        num_columns=len(source.task.source.inputs),
        labels=source.task.classes,
    )


def _call(model: nn.Module, inputs: Any) -> torch.Tensor:
    logits: torch.Tensor = model(inputs)
    return logits
