"""Are two fragments the beginning and end of a sentence, or swapped? (2,800 train, 600 validation, 1,000 test).

Made from docstrings of installed packages, excluding those on which the embedded BERT was pre-trained.
"""

from isp.data.prose import SIZES, Prose, half_order
from isp.tasks import TextTask

TASK = TextTask(
    source=Prose(half_order, ("first", "second")),
    num_examples=SIZES["train"],
    classes=("swapped", "in order"),
    num_validation=600,
    split="stratified",
)
