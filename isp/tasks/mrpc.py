"""MRPC: are two sentences paraphrases? (3,302 train, 366 validation; scored on the official dev set, 408)."""

from isp.tasks._glue import glue

TASK = glue(
    "mrpc",
    inputs=("sentence1", "sentence2"),
    num_examples=3_668,
    classes=("not_equivalent", "equivalent"),
    metrics=("accuracy", "f1"),
    split="stratified",
)
