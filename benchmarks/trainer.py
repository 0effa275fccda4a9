"""Scores of methods in the Trainer of transformers, compared with those of the workflow under the same protocol.

    snakemake --configfile config/trainer.yaml --config data_root=FOLDER
    python benchmarks/trainer.py [--variants dense one_shot progressive isp] [--seeds 0] [--output FILE]

Model (all-MiniLM-L6-v2 with a random head, initialised by the seed), examples (CoLA), T, batch size, learning rates,
weight decay, clipping and the settings of methods are those of the study, which must have been run in this folder.
Batches are those of the Trainer: shuffled, padded, not grouped by length, so scores differ like those of another seed.
Matthews correlations on the official dev set are printed in percent.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from isp import artifacts
from isp.config import Study, load_study
from isp.data.texts import Texts
from isp.definitions import backbone_of, task_of
from isp.integrations.transformers import PruningCallback
from isp.metrics import score

BACKBONE, TASK = "minilm", "cola"


class Pad:
    """Tokenizer with the interface that `DataCollatorWithPadding` needs: the padding of a batch."""

    padding_side = "right"

    def pad(self, features: list[dict[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
        """Pad with zeros to the longest text."""
        longest = max(len(each["input_ids"]) for each in features)
        keys = ("input_ids", "attention_mask", "token_type_ids")
        rows = {key: [[*each[key], *[0] * (longest - len(each[key]))] for each in features] for key in keys}
        return {
            key: torch.tensor(values) for key, values in {**rows, "labels": [e["labels"] for e in features]}.items()
        }


def examples(part: artifacts.Part) -> list[dict[str, Any]]:
    """Return the prepared examples of a part as lists of numbers."""
    tensors, _ = artifacts.load_examples(Path(f"resources/prepared/{BACKBONE}/{TASK}/{part}.safetensors"), part)
    texts = Texts(**{key: tensors[key] for key in ("tokens", "length", "second", "labels")})
    found = []
    for number in range(len(texts)):
        inputs, labels = texts.batch(torch.tensor([number]))
        found.append({**{key: value[0].tolist() for key, value in inputs.items()}, "labels": int(labels[0])})
    return found


def model_of(seed: int) -> BertForSequenceClassification:
    """Return the pre-trained model with a new head, the same as in the workflow."""
    pretrained, _ = artifacts.load_backbone(Path(f"resources/backbones/{BACKBONE}.safetensors"))
    initial = backbone_of(BACKBONE).initial(pretrained, task_of(TASK), seed, random=False)
    model = BertForSequenceClassification(BertConfig.from_dict(dict(pretrained.architecture), num_labels=2))
    model.load_state_dict(initial.state_dict())
    return model


def train(study: Study, variant: str, sparsity: str, seed: int, data: list[dict[str, Any]]) -> Trainer:
    """Train one cell, and return the Trainer."""
    protocol, method = study.training[BACKBONE], study.variants[variant]
    pruned = method.method != "dense"
    callback = pruned and PruningCallback(
        method=method.method,
        sparsity=sparsity,
        settings=method.settings,
        prunable=list(backbone_of(BACKBONE).prunable),
    )
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=protocol.steps,
        per_device_train_batch_size=protocol.batch_size,
        learning_rate=protocol.learning_rate,
        warmup_steps=protocol.warmup_steps,
        weight_decay=protocol.weight_decay,
        max_grad_norm=protocol.clip_norm,
        lr_scheduler_type="linear",
        dataloader_drop_last=True,
        seed=seed,
        save_strategy="no",
        report_to=[],
        logging_steps=100,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model_of(seed),
        arguments,
        data_collator=DataCollatorWithPadding(Pad()),
        train_dataset=data,
        callbacks=[callback] if callback else [],
    )
    trainer.train()
    if callback:
        assert str(callback.ticket().sparsity) == f"{float(sparsity):.4f}"
    return trainer


def workflow_scores() -> dict[tuple[str, str], str]:
    """Return the test scores of the study, by variant and seed."""
    with Path("results/trainer/metrics.csv").open(encoding="utf-8") as file:
        return {(row["variant"], row["seed"]): row["test"] for row in csv.DictReader(file)}


def main() -> None:
    """Train every cell, and print both scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["dense", "one_shot", "progressive", "isp"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sparsity", default="0.50")
    parser.add_argument("--output", type=Path, default=Path("trainer.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(Path("config/trainer.yaml"))
    data, test = examples("train"), examples("test")
    done = set()
    if options.output.exists():
        with options.output.open(encoding="utf-8") as file:
            done = {(row["variant"], row["seed"]) for row in csv.DictReader(file)}
    else:
        options.output.write_text("variant,seed,trainer\n", encoding="utf-8")
    for seed in options.seeds:
        for variant in options.variants:
            if (variant, str(seed)) in done:
                continue
            trainer = train(study, variant, options.sparsity, seed, data)
            told = trainer.predict(test)
            reached = score("matthews", told.predictions, told.label_ids)
            with options.output.open("a", encoding="utf-8") as file:
                file.write(f"{variant},{seed},{reached:.2f}\n")
    theirs = workflow_scores()
    print(f"{'variant':14}{'seed':>6}{'workflow':>10}{'Trainer':>10}")
    with options.output.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cell = (row["variant"], row["seed"])
            print(f"{row['variant']:14}{row['seed']:>6}{float(theirs[cell]):10.2f}{float(row['trainer']):10.2f}")


if __name__ == "__main__":
    main()
