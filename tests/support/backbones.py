"""Small backbones that were never trained."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from isp import registry
from isp.backbones import Pretrained, clip_tiny
from isp.backbones import _bert as bert
from isp.backbones import _open_clip as clip

WORDS = (*bert.SPECIAL, "a", "b", "c", "d", "##e", "##f")
SMALL_BERT: dict[str, Any] = {
    **{"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32},
}


@cache
def small(name: str) -> Pretrained:
    """A backbone that was never trained, of a tiny architecture of the family."""
    if registry.load("backbone", name).BACKBONE.inputs == "texts":
        return Pretrained(
            weights=dict(bert.build(SMALL_BERT, 0).state_dict()), architecture=SMALL_BERT, vocabulary=WORDS
        )
    architecture = clip_tiny.BACKBONE.described()
    return Pretrained(weights=dict(clip.build(architecture, 0).state_dict()), architecture=architecture)


def bert_folder(folder: Path, weights: dict[str, torch.Tensor], **changed: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / bert.CONFIG).write_text(json.dumps({**SMALL_BERT, **changed}))
    (folder / bert.VOCABULARY).write_text("\n".join(WORDS) + "\n")
    save_file(weights, folder / bert.WEIGHTS)
