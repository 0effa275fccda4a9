"""STS-B: similarity of two sentences, a regression (5,175 train, 574 validation; scored on the dev set, 1,500)."""

from isp.tasks._glue import glue

TASK = glue(
    "stsb",
    inputs=("sentence1", "sentence2"),
    num_examples=5_749,
    classes=(),
    metrics=("pearson", "spearman"),
)
