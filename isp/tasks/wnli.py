"""WNLI: what does a pronoun refer to? (572 train, 63 validation; scored on the official dev set, 71).

The dev set is adversarial: always predicting the majority class beats most models. Compare with `majority_test`.
"""

from isp.tasks._glue import glue

TASK = glue(
    "wnli",
    inputs=("sentence1", "sentence2"),
    num_examples=635,
    classes=("not_entailment", "entailment"),
    split="stratified",
)
