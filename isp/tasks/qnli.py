"""QNLI: does a sentence answer a question? (99,743 train, 5,000 validation; scored on the official dev set, 5,463)."""

from isp.tasks._glue import glue

TASK = glue(
    "qnli",
    inputs=("question", "sentence"),
    num_examples=104_743,
    classes=("entailment", "not_entailment"),
)
