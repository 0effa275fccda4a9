"""RTE: does one text entail another? (2,241 train, 249 validation; scored on the official dev set, 277)."""

from isp.tasks._glue import glue

TASK = glue(
    "rte",
    inputs=("sentence1", "sentence2"),
    num_examples=2_490,
    classes=("entailment", "not_entailment"),
    split="stratified",
)
