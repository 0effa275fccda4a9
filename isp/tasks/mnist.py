"""MNIST handwritten digits (28 x 28 grey images; 55,000 train, 5,000 validation, 10,000 test)."""

from isp.data.sources import HubDataset
from isp.tasks import ImageTask

TASK = ImageTask(
    source=HubDataset(
        id="ylecun/mnist",
        revision="77f3279092a1c1579b2250db8eafed0ad422088c",
        folder="mnist",
    ),
    num_examples=60_000,
    classes=tuple("0123456789"),
    # The authors' only template.
    templates=('a photo of the number: "{}".',),
)
