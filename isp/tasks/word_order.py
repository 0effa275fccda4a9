"""Is the order of a sentence's words intact, or is a span of six shuffled? (2,800 train, 600 validation, 1,000 test).

Made from docstrings of installed packages, excluding those on which the embedded BERT was pre-trained.
"""

from isp.data.prose import SIZES, Prose, word_order
from isp.tasks import TextTask

TASK = TextTask(
    source=Prose(word_order, ("sentence",)),
    num_examples=SIZES["train"],
    classes=("deranged", "intact"),
    num_validation=600,
    split="stratified",
)
