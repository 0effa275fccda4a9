"""MNLI: does a premise entail a hypothesis? (387,702 train, 5,000 validation; scored on the matched dev set, 9,815)."""

from isp.tasks._glue import glue

TASK = glue(
    "mnli",
    inputs=("premise", "hypothesis"),
    num_examples=392_702,
    classes=("entailment", "neutral", "contradiction"),
    test="validation_matched",
)
