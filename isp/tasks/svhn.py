"""Street View House Numbers, cropped digits (32 x 32; 68,257 train, 5,000 validation, 26,032 test).

The split `extra` is not used.
"""

from isp.data.sources import HubDataset
from isp.tasks import ImageTask

TASK = ImageTask(
    source=HubDataset(
        id="ufldl-stanford/svhn",
        revision="f9e1717d73324ebbc1ece84267ccd80d0aca0690",
        folder="cropped_digits",
    ),
    num_examples=73_257,
    classes=tuple("0123456789"),
    # The authors' only template.
    templates=('a photo of the number: "{}".',),
)
