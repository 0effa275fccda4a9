"""Are two fragments beginning and end of one sentence, or swapped? (2,800 train, 600 validation, 1,000 test).

Made from docstrings of installed packages, from none that the embedded BERT was pre-trained on.
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
