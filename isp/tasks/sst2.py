"""SST-2: sentiment of phrases from film reviews (62,349 train, 5,000 validation; scored on the dev set, 872).

The training split consists of overlapping phrases of the same sentences. Validation examples are drawn from it at
random, so 24 % of them equal a training example up to punctuation and case, and 90 % of those with three or more words
lie within one (in the dev set 0.2 and 0 %). Validation scores are therefore too high, by 10 points for logistic
regression on words, and methods that choose by them favour models that memorise. Compare methods by the dev set.
"""

from isp.tasks._glue import glue

TASK = glue(
    "sst2",
    inputs=("sentence",),
    num_examples=67_349,
    classes=("negative", "positive"),
)
