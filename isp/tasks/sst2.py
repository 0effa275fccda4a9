"""SST-2: sentiment of phrases from film reviews (62,349 train, 5,000 validation; scored on the dev set, 872)."""

from isp.tasks._glue import glue

TASK = glue(
    "sst2",
    inputs=("sentence",),
    num_examples=67_349,
    classes=("negative", "positive"),
)
