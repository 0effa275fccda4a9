"""MNIST handwritten digits (28 x 28 grey pictures; 55,000 train, 5,000 validation, 10,000 test)."""

from isp.data.sources import HubFolder
from isp.tasks import ImageTask

TASK = ImageTask(
    source=HubFolder(id="ylecun/mnist", config="mnist"),
    num_examples=60_000,
    classes=tuple("0123456789"),
    templates=('a photo of the number: "{}".',),  # the authors' one template
)
