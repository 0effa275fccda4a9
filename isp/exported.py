"""Exported folders, loaded with the library for which they were written.

This file imports nothing else of the package and also runs as a script: `isp export` starts it in a process in which
the package cannot be imported, to verify that the folder is complete without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Library = Literal["transformers", "open_clip", "safetensors"]
CONFIGS: dict[str, Library] = {"config.json": "transformers", "open_clip_config.json": "open_clip"}
"""Files that identify the library of a folder."""
PLAIN, TICKET, READER = "model.safetensors", "ticket.safetensors", "read_ticket.py"
CLIP = "open_clip_model.safetensors"
TOKENIZER = "tokenizer_config.json"
HEAD, CLASSES = "head.safetensors", "classes.json"


@dataclass(frozen=True)
class Predictor:
    """A model with everything that leads from texts or images to labels.

    Attributes:
        model: Module in evaluation mode.
        forward: Function from the module and inputs to logits, (n, outputs).
        prepare: Function from columns of texts, or one column of paths of images, to inputs.
        inputs: Kind of inputs; empty if unknown.
        num_columns: Number of columns of an example; None: one or two.
        labels: Names of the classes; empty for a regression.
        state: Tensors of the folder, under their names in a ticket.
        multi_label: Whether an input may have several labels or none, so that each has its own probability.
    """

    model: nn.Module
    forward: Callable[[nn.Module, Any], Tensor]
    prepare: Callable[[Sequence[Sequence[str]]], Any]
    inputs: Literal["texts", "pictures", ""]
    num_columns: int | None
    labels: tuple[str, ...]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    multi_label: bool = False

    def logits(self, inputs: Any) -> Tensor:
        """Compute logits, (n, outputs), without gradients."""
        with torch.inference_mode():
            return self.forward(self.model, inputs)


def library_of(folder: Path) -> Library | None:
    """Return the library of a folder, or None if it was not exported."""
    for name, library in CONFIGS.items():
        if (folder / name).is_file():
            return library
    return "safetensors" if (folder / PLAIN).is_file() or (folder / TICKET).is_file() else None


def load(folder: Path, weights: Mapping[str, Tensor] | None = None, attention: str | None = None) -> Predictor:
    """Load an exported folder that has a configuration of its model.

    Args:
        folder: Exported folder.
        weights: Weights of the ticket, for a folder without plain weights.
        attention: Attention implementation of a model of transformers; None: the default.
    """
    with _quiet():
        if library_of(folder) == "open_clip":
            return _from_open_clip(folder, weights)
        return _from_transformers(folder, weights, attention)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars, and open_clip's warnings about a folder without weights."""
    import transformers

    bar: Any = transformers.utils.logging
    bars, level = bar.is_progress_bar_enabled(), logging.root.manager.disable
    bar.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        if bars:
            bar.enable_progress_bar()


def _read_ticket(folder: Path) -> dict[str, Tensor]:
    """Read a ticket's weights by running the NumPy code in its folder, which must have just been written.

    Python's own loader would leave byte code in the folder.
    """
    module = ModuleType("read_ticket")
    exec(compile((folder / READER).read_bytes(), str(folder / READER), "exec"), module.__dict__)
    weights, _ = module.read_ticket(folder / TICKET)
    with safe_open(folder / TICKET, "pt") as file:
        stored = {name.removeprefix("kept/"): file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {name: _tensor(array, stored[f"weights/{name}"]) for name, array in weights.items()}


BITS = {
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""Types that NumPy lacks, so that their values arrive as bits."""


def _tensor(array: Any, stored: str) -> Tensor:
    """Return a tensor with its own memory.

    Args:
        array: Values, or their bits as unsigned integers.
        stored: Name of their type in safetensors.
    """
    tensor = torch.from_numpy(array.copy())
    return tensor.view(BITS[stored]) if stored in BITS else tensor


def _from_transformers(folder: Path, weights: Mapping[str, Tensor] | None, attention: str | None) -> Predictor:
    import transformers
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}  # run no code from the folder, use no hub
    config = AutoConfig.from_pretrained(folder, **local)
    (name, *_) = config.architectures
    classifies = name.endswith("ForSequenceClassification")
    cls: Any = AutoModelForSequenceClassification if classifies else getattr(transformers, name)
    chosen = {"attn_implementation": attention} if attention else {}
    if weights is None:
        model = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, **chosen)
    else:
        if attention:
            config._attn_implementation = attention
        model = (cls.from_config if classifies else cls._from_config)(config)  # both in the dtype of the configuration
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
        if unexpected:
            raise ValueError(f"{folder / TICKET}: {unexpected[0]!r} is not a tensor of {name}")
        model.tie_weights()

    readable = classifies and (folder / TOKENIZER).is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder, **local) if readable else None
    longest = _longest(model, tokenizer.model_max_length) if tokenizer is not None else None

    def prepare(columns: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        assert tokenizer is not None
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        return dict(tokenizer(*map(list, columns), **options))

    columns = getattr(config, "input_columns", None)
    multi_label = config.problem_type == "multi_label_classification"
    regression = config.problem_type == "regression" or (config.num_labels == 1 and not multi_label)
    labels = () if regression or not classifies else tuple(config.id2label[i] for i in range(config.num_labels))
    return Predictor(
        model=_aligned(model),
        forward=call_transformers,
        prepare=prepare,
        inputs="texts" if readable else "",
        num_columns=len(columns) if columns else None,
        labels=labels,
        state=model.state_dict(),
        multi_label=multi_label,
    )


def _longest(model: Any, limit: int) -> int | None:
    """Return how many tokens a text may have: no more than the tokenizer allows and the model has positions.

    Args:
        model: Model of transformers.
        limit: Limit of the tokenizer, which is huge if it has none.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:  # RoBERTa counts positions from this one on
            positions = module.num_embeddings - padding - 1
    if positions > 0:  # XLNet has -1, without a limit
        limit = min(limit, positions)
    return limit if limit < sys.maxsize else None


def _from_open_clip(folder: Path, weights: Mapping[str, Tensor] | None) -> Predictor:
    import open_clip
    from PIL import Image

    clip: Any
    if weights is None and not (folder / CLIP).is_file():
        raise FileNotFoundError(f"no {CLIP}")  # open_clip would use any other file of weights
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=weights is None)
    if weights is None:
        head = load_file(folder / HEAD)["head"]
    else:
        head = weights["head"]
        visual = {name.removeprefix("visual."): tensor for name, tensor in weights.items() if name != "head"}
        clip.visual.load_state_dict(visual)

    def prepare(columns: Sequence[Sequence[str]]) -> Tensor:
        images = []
        for path in columns[0]:
            with Image.open(path) as image:
                if image.mode[0] in "IF":  # the transform would clip their levels at 255
                    raise ValueError(
                        f"{path}: grey levels of more than 8 bits; store the image with 8 bits per channel"
                    )
                images.append(transform(image))
        return torch.stack(images)

    clip = _aligned(clip)
    head = head.clone()
    return Predictor(
        model=clip,
        forward=lambda module, images: _encode(module, images) @ head.T,
        prepare=prepare,
        inputs="pictures",
        num_columns=1,
        labels=tuple(json.loads((folder / CLASSES).read_text(encoding="utf-8"))),
        state={**clip.state_dict(), "head": head},
    )


def _encode(clip: Any, images: Tensor) -> Tensor:
    """Return unit features of images, (n, width)."""
    features: Tensor = clip.encode_image(images, normalize=True)
    return features


def _aligned(model: nn.Module) -> Any:
    """Return the model in evaluation mode, with its tensors copied to newly allocated memory.

    Tensors of a mapped file may start at any address, on which the bits of a product may depend.
    """
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model.eval()


def call_transformers(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a transformers model, or its first output."""
    output = model(**inputs)
    logits: Tensor = output.logits if "logits" in output else output[0]
    return logits


# --- verification in a separate process -------------------------------------------------------------------------------


def answer(request: Mapping[str, Any]) -> dict[str, Tensor]:
    """Describe the content of a folder, for comparison with the ticket.

    Args:
        request: Dict with `folder`; `threads` of torch; `names` of the ticket's tensors and of its `prunable` ones; and
            inputs for logits, as `columns` (texts or paths of images), as a file of `tensors`, or neither; and
            `attention`, the implementation that the model has.

    Returns:
        `digest/<name>`: SHA-256 of each tensor, uint8 (32,). `zeros/<name>`: number of zeros of each prunable one,
        int64. `inputs/<name>` and `logits`, if there are inputs.
    """
    torch.set_num_threads(request["threads"])
    folder = Path(request["folder"])
    weights = _read_ticket(folder) if (folder / TICKET).exists() else None
    if library_of(folder) == "safetensors":
        predictor = None
        state: Mapping[str, Tensor] = load_file(folder / PLAIN) if weights is None else weights
    else:
        predictor = load(folder, weights, request["attention"])
        state = predictor.state
    result = {f"digest/{name}": digest(state[name]) for name in request["names"] if name in state}
    result |= {f"zeros/{name}": zeros(state[name]) for name in request["prunable"] if name in state}
    if predictor is not None and request["columns"]:
        result |= outputs(predictor, predictor.prepare(request["columns"]))
    elif predictor is not None and request["tensors"]:
        result |= outputs(predictor, load_file(request["tensors"]))
    return result


def outputs(predictor: Predictor, inputs: Any) -> dict[str, Tensor]:
    """Return inputs and logits by name."""
    named = inputs if isinstance(inputs, dict) else {"pixels": inputs}
    return {**{f"inputs/{name}": each for name, each in named.items()}, "logits": predictor.logits(inputs)}


def digest(tensor: Tensor) -> Tensor:
    """Return the SHA-256 of the bytes of a tensor, uint8 (32,)."""
    flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))  # at most one value: any strides
    content = flat.view(torch.uint8).numpy()
    return torch.tensor(list(hashlib.sha256(content.data).digest()), dtype=torch.uint8)


def zeros(tensor: Tensor) -> Tensor:
    """Count the zeros of a tensor, int64 scalar."""
    return (tensor == 0).sum().cpu()


def main(request: str, output: str) -> None:
    """Answer a request in a JSON file with a file of tensors, while the package cannot be imported."""
    sys.modules["isp"] = None  # type: ignore[assignment]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    result = answer(json.loads(Path(request).read_text(encoding="utf-8")))
    save_file({name: tensor.contiguous() for name, tensor in result.items()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
