"""CoLA: is a sentence acceptable English? (7,696 train, 855 validation; scored on the official dev set, 1,043)."""

from isp.tasks._glue import glue

TASK = glue(
    "cola",
    inputs=("sentence",),
    num_examples=8_551,
    classes=("unacceptable", "acceptable"),
    metrics=("matthews", "accuracy"),
    split="stratified",
)
