"""One file a task; its name is the file's stem. Every file defines `TASK`."""

from __future__ import annotations

from dataclasses import dataclass

from isp.data.sources import Digits, HubFolder


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """A picture classification task.

    Attributes:
        source: where the examples come from.
        classes: names of the classes in the order of the labels.
        templates: prompt templates for the zero-shot head, each with one {}.
        metric: name in `isp.metrics`.
        num_validation: examples carved from the official training split; None: min(10 %, 5000).
        version: raised when the task's behaviour changes; scores of different versions are not comparable.
    """

    source: HubFolder | Digits
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    metric: str = "accuracy"
    num_validation: int | None = None
    version: int = 1
