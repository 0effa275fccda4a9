"""QQP: are two questions duplicates? (358,846 train, 5,000 validation; scored on the official dev set, 40,430)."""

from isp.tasks._glue import glue

TASK = glue(
    "qqp",
    inputs=("question1", "question2"),
    num_examples=363_846,
    classes=("not_duplicate", "duplicate"),
    metrics=("accuracy", "f1"),
)
