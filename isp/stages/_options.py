"""Options that stages share, so that one thing has one name and one explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from isp import sparsity
from isp.errors import IspError, shown
from isp.parsing import load_yaml
from isp.runtime import instructions


def mapping(text: str) -> dict[str, Any]:
    """Keys and values from YAML text (JSON is YAML, too).

    Raises:
        IspError: the text is no mapping. (A ValueError, such as ConfigError, typer would take for its own.)
    """
    try:
        values = load_yaml(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise IspError(f"{shown(text)}: not keys and values in YAML, such as '{{steps: 300, batch_size: 32}}'")
    return values


Backbone = Annotated[str, typer.Option(help="`isp list backbones` shows them; or a definition as YAML.")]
Task = Annotated[str, typer.Option(help="`isp list tasks` shows them; or a definition as YAML.")]
DataRoot = Annotated[Path, typer.Option(help="Folder of data sets and models in the hub's layout; looked in first.")]
Manifest = Annotated[Path, typer.Option(help="From `isp download`; the files are held to it.")]
Weights = Annotated[Path, typer.Option(help="The pre-trained backbone, from `isp pretrain` or `isp convert`.")]
Seed = Annotated[int, typer.Option(min=0, help="Of data order, augmentation, dropout and look-aheads.")]
Data = Annotated[Path, typer.Option(help="Prepared training examples, from `isp prepare`.")]
Limits = Annotated[
    dict[str, Any],
    typer.Option(parser=mapping, metavar="YAML", help="Of the task: num_train, num_validation, augmentation."),
]
Training = Annotated[
    dict[str, Any],
    typer.Option(
        parser=mapping,
        metavar="YAML",
        help="The protocol: steps (T), batch_size, learning_rate, warmup_steps, weight_decay, clip_norm, precision.",
    ),
]
MethodName = Annotated[str, typer.Option(help="`isp list methods` shows them; or the path of a method's file.")]
MethodSettings = Annotated[
    dict[str, Any], typer.Option(parser=mapping, metavar="YAML", help="Of the method; the keys are in its file.")
]
LookAheadSettings = Annotated[
    dict[str, Any],
    typer.Option(
        parser=mapping,
        metavar="YAML",
        help="Of look-aheads: look_ahead_steps, learning_rate_factors, weight_decays, optimizer, warmup_steps, "
        "data_fraction.",
    ),
]
RoundState = Annotated[Path, typer.Option(help="The state that the round's segment ended in.")]
Round = Annotated[int, typer.Option("--round", min=0, help="Number of the round, from 0.")]
Sparsity = Annotated[str, typer.Option(help="Share of the prunable weights that are zero, in (0, 1).")]
Scope = Annotated[
    sparsity.Scope, typer.Option(help="How weights are ranked: global, layer, or a pattern N:M such as 2:4.")
]
Within = Annotated[Path | None, typer.Option(help="The current mask; what it dropped stays dropped. Left out: dense.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch; the bits of the result depend on it.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
InstructionSet = Annotated[
    instructions.InstructionSet | None,
    typer.Option(
        help="Kernels to compute with on a CPU: avx2, for the same bits on all Intel CPUs with AVX2, or native. Left "
        "out: avx2 for float32 on a CPU that has it."
    ),
]
ValidationData = Annotated[Path, typer.Option(help="Prepared validation examples, from `isp prepare`.")]
Output = Annotated[Path, typer.Option(help="The artifact to write.")]
Metrics = Annotated[Path, typer.Option(help="metrics.csv of a study, from `isp collect`.")]
Rounds = Annotated[Path, typer.Option(help="rounds.csv of a study, from `isp collect`.")]
Layers = Annotated[Path, typer.Option(help="layers.csv of a study, from `isp collect`.")]
Similarity = Annotated[Path, typer.Option(help="similarity.csv of a study, from `isp collect`.")]
