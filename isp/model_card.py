"""Model card of an exported ticket: a README.md for readers, with the metadata that the hub uses."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import Tensor

from isp import masks, registry
from isp.artifacts import is_stored_as_bytes
from isp.costs import Cost
from isp.exported import BITS, Library
from isp.metrics import value_range
from isp.reporting import tabular
from isp.reporting.statistics import interval
from isp.reporting.tables import over_seeds, si
from isp.tickets import Ticket
from isp.untrusted import printable

USE: dict[tuple[str, bool], str] = {
    ("transformers", True): """\
from transformers import {classes}

folder = "."  # the folder of this file
{tokenizer}model = {cls}.from_pretrained(folder)
""",
    ("transformers", False): """\
import torch
from read_ticket import read_ticket  # in this folder; needs only NumPy
{imports}from transformers import {classes}

folder = "."  # the folder of this file
{tokenizer}model = {make}(AutoConfig.from_pretrained(folder)).eval()
weights, mask = read_ticket(f"{{folder}}/ticket.safetensors")
{tensors}model.load_state_dict(tensors)
""",
    ("open_clip", True): """\
import json

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

folder = "."  # the folder of this file
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
model.eval()
head = load_file(f"{{folder}}/head.safetensors")["head"]
""",
    ("open_clip", False): """\
import json

import open_clip
import torch
from PIL import Image
from read_ticket import read_ticket  # in this folder; needs only NumPy
{imports}
folder = "."  # the folder of this file
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}", load_weights=False)
weights, mask = read_ticket(f"{{folder}}/ticket.safetensors")
{tensors}head = tensors.pop("head")
model.visual.load_state_dict({{name.removeprefix("visual."): tensor for name, tensor in tensors.items()}})
model.eval()
""",
    ("safetensors", True): """\
from safetensors.torch import load_file

folder = "."  # the folder of this file
model.load_state_dict(load_file(f"{{folder}}/model.safetensors"))
""",
    ("safetensors", False): """\
import torch
from read_ticket import read_ticket  # in this folder; needs only NumPy
{imports}
folder = "."  # the folder of this file
weights, mask = read_ticket(f"{{folder}}/ticket.safetensors")
{tensors}model.load_state_dict(tensors)
""",
}
"""Code that loads a folder with its library, by (library, whether the weights are plain)."""
TENSORS = """\
tensors = {name: torch.tensor(array) for name, array in weights.items()}
"""
TENSORS_OF_BITS = """\
stored = load_file(f"{folder}/ticket.safetensors")  # for the types, because NumPy lacks some and has bits instead
types = {name.removeprefix("kept/"): tensor.dtype for name, tensor in stored.items()}
tensors = {name: torch.tensor(array).view(types[f"weights/{name}"]) for name, array in weights.items()}
"""
LABEL_TEXTS = """\
inputs = tokenizer({texts}, truncation=True, return_tensors="pt")
print({result})
"""
LABEL_IMAGES = """\
image = "image.png"
classes = json.load(open(f"{folder}/classes.json"))
with torch.no_grad():
    features = model.encode_image(preprocess(Image.open(image))[None], normalize=True)
print(classes[int((features @ head.T).argmax())])
"""
_WITH_PACKAGE = "With the package isp, `isp.load_ticket(path)` reads `ticket.safetensors` with mask and records."
_NO_SCORES = "The ticket was not scored, or its record is no longer in its folder."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Content of a ticket's model card.

    Attributes:
        ticket: Ticket.
        title: Headline.
        library: Library for which the folder was exported.
        cls: Class of transformers that loads the folder; empty for other libraries.
        tokenizer: Whether the folder has a tokenizer of transformers.
        compact: Whether the folder contains kept values and bits instead of plain weights.
        digest: Digest of the tensors of the ticket.
        made_with: Versions of packages and the type of CPU that made it.
        task: Task as YAML values; empty for a model outside of the workflow.
        inputs: Kind of inputs, "texts" or "pictures"; empty for a model outside of the workflow.
        base: Pre-trained model on the hub; empty if there is none.
        settings: Settings of the method.
        records: Records of this ticket and of its other seeds.
    """

    ticket: Ticket
    title: str
    library: Library
    cls: str = ""
    tokenizer: bool = False
    compact: bool
    digest: str
    made_with: Mapping[str, str]
    task: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = ""
    base: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()


def model_card(facts: Facts) -> str:
    """Return the card as Markdown."""
    sections = {
        "Use": f"```python\n{_use(facts)}```" + (f"\n\n{_WITH_PACKAGE}" if facts.compact else ""),
        "Scores": _scores(facts) if facts.inputs else "",
        "Task": _yaml(facts.task) if facts.task else "",
        "Sparsity": _sparsity(facts),
        "Cost": _cost(facts),
        "Method and settings": _method(facts),
        "Provenance": _provenance(facts),
    }
    body = "\n\n".join(f"## {name}\n{text}" for name, text in sections.items() if text)
    return printable(f"{_front_matter(facts)}\n# {facts.title}\n\n{body}\n")


def _front_matter(facts: Facts) -> str:
    tags = {"texts": "text-classification", "pictures": "image-classification"}
    values: dict[str, Any] = {"library_name": facts.library, "tags": ["pruning", "sparse"]}
    values |= {"pipeline_tag": tags[facts.inputs]} if facts.inputs else {}
    values |= {"base_model": facts.base} if facts.base else {}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _use(facts: Facts) -> str:
    """Return code that loads the folder and, if the ticket has a task, classifies."""
    classes = [facts.cls, *["AutoConfig"] * facts.compact, *["AutoTokenizer"] * facts.tokenizer]
    bits = any(tensor.dtype in BITS.values() for tensor in facts.ticket.weights.values())
    load = USE[facts.library, not facts.compact].format(
        cls=facts.cls,
        classes=", ".join(classes),
        tokenizer="tokenizer = AutoTokenizer.from_pretrained(folder)\n" if facts.tokenizer else "",
        make=f"{facts.cls}.from_config" if facts.cls.startswith("Auto") else f"{facts.cls}._from_config",
        imports="from safetensors.torch import load_file\n" if bits else "",
        tensors=(TENSORS_OF_BITS if bits else TENSORS) + _of_bytes(facts.ticket.weights),
    )
    if facts.inputs == "texts":
        texts = ", ".join(json.dumps(name, ensure_ascii=False) for name in facts.task["inputs"])
        logits = "model(**inputs).logits"
        result = f"model.config.id2label[int({logits}.argmax())]" if "classes" in facts.task else f"float({logits})"
        label = LABEL_TEXTS.format(texts=texts, result=result)
    else:
        label = LABEL_IMAGES if facts.inputs == "pictures" else ""
    return load + label


def _of_bytes(weights: Mapping[str, Tensor]) -> str:
    """Return code that gives tensors their type and shape of which a file has only the bytes."""
    return "".join(
        f"tensors[{name!r}] = tensors[{name!r}].view({tensor.dtype}).reshape({tuple(tensor.shape)})\n"
        for name, tensor in weights.items()
        if is_stored_as_bytes(tensor)
    )


def _scores(facts: Facts) -> str:
    """Return a table with one row per metric of the task and part of its data, over the seeds of the study."""
    if not facts.records:
        return _NO_SCORES
    seed = facts.ticket.origin.get("seed")
    record_ = next((record for record in facts.records if record["seed"] == seed), facts.records[0])
    sure = "95 % interval of the mean" if len(facts.records) >= tabular.FEWEST else "both seeds"
    lines = [
        f"| | seed {record_['seed']} (these weights) | mean over {len(facts.records)} seeds | {sure} |",
        "|---|---|---|---|",
    ]
    if len(facts.records) == 1:
        lines = [f"| | seed {record_['seed']}, the only one |", "|---|---|"]
    for part in ("test", "validation"):
        for metric in (*record_["metrics"], "majority"):
            values = [float(record[part][metric]) for record in facts.records]
            name = "always the most frequent label" if metric == "majority" else metric
            cells = [f"{name}, {part}", f"{record_[part][metric]:.2f}"]
            if len(values) > 1:
                around = interval(values, value_range(metric))
                shown = f"{around[0]:.2f} to {around[1]:.2f}" if around else ""
                cells += [f"{statistics.fmean(values):.2f}", over_seeds(values) if len(values) == 2 else shown]
            lines.append(f"| {' | '.join(cells)} |")
    note = "In percent."
    if len(facts.records) >= tabular.FEWEST:
        note += " The interval is Student's t over seeds, clipped to the range of the metric."
    return "\n".join(lines) + f"\n\n{note} Choices were made on validation examples only."


def _sparsity(facts: Facts) -> str:
    ticket = facts.ticket
    total, kept = masks.num_weights(ticket.mask), masks.num_kept(ticket.mask)
    size = sum(tensor.nbytes for tensor in ticket.weights.values())
    pruned = sum(ticket.weights[name].element_size() * int((~mask).sum()) for name, mask in ticket.mask.items())
    compact = size - pruned + -(-total // 8)
    share = f"{(total - kept) / total:.4%}" if total else "0 %"
    return (
        f"{total - kept:,} of {total:,} prunable weights ({share.replace('%', ' %')}) are exactly zero. The weights "
        f"take {size / 1e6:,.1f} MB whole and {compact / 1e6:,.1f} MB as kept values and one bit per prunable weight. "
        "Zeros on their own make neither a dense file smaller nor a dense matrix product faster."
    )


def _cost(facts: Facts) -> str:
    lines = ["| | steps | samples | FLOPs executed | without masked weights |", "|---|---|---|---|---|"]
    parts: list[tuple[str, Cost]] = [("finding the mask", facts.ticket.finding)]
    parts += [("training under it", facts.ticket.retraining), ("together", facts.ticket.cost)]
    for name, cost in parts:
        lines.append(f"| {name} | {cost.steps:,} | {cost.samples:,} | {si(cost.flops)} | {si(cost.sparse_flops)} |")
    measured = facts.ticket.origin.get("measured")
    if measured:
        seconds = sum(part["seconds"] for part in measured.values())
        lines += ["", f"Measured: {seconds:,.1f} s on {facts.ticket.origin.get('device', 'an unknown device')}."]
    return "\n".join(lines)


def _method(facts: Facts) -> str:
    method, origin = facts.ticket.method, facts.ticket.origin
    known = method in registry.names("method")  # loading a file from elsewhere would run its code
    summary = registry.summary("method", method) if known else "A method from outside the package."
    values: dict[str, Any] = {"method": method, "sparsity": str(facts.ticket.sparsity), "settings": facts.settings}
    values |= {key: origin[key] for key in ("seed", "training", "limits") if key in origin}
    return f"{summary}\n\n{_yaml(values)}"


def _provenance(facts: Facts) -> str:
    origin = facts.ticket.origin
    values: dict[str, Any] = {"digest": facts.digest}
    values |= {key: origin[key] for key in ("place", "stage", "version", "training_version", "device") if key in origin}
    values |= {"inputs": origin["contents"]} if "contents" in origin else {}
    return f"{_yaml({**values, 'made_with': dict(facts.made_with)})}"


class _Dumper(yaml.SafeDumper):
    """YAML with each list on one line."""


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def _yaml(values: Mapping[str, Any]) -> str:
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"```yaml\n{text}```"
