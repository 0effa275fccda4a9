"""Handwritten digits shipped with scikit-learn (8 x 8 images; 900 train, 300 validation, 597 test)."""

from isp.data.sources import Digits
from isp.tasks import ImageTask

TASK = ImageTask(
    source=Digits(),
    num_examples=1200,
    classes=tuple("0123456789"),
    templates=('a photo of the number: "{}".',),
    num_validation=300,
    split="stratified",
)
