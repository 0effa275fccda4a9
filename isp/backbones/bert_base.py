"""BERT-base, uncased (12 layers of width 768, 84,934,656 prunable weights): the paper's language backbone."""

from isp.backbones._bert import BertBackbone
from isp.data.sources import HubModel
from isp.training import Training

BACKBONE = BertBackbone(
    source=HubModel(id="google-bert/bert-base-uncased", revision="86b5e0934494bd15c9632b12f734a8a67f723594"),
    architecture={"model_type": "bert"},  # transformers' defaults describe BERT-base
)

TRAINING = Training(steps=1000, batch_size=32, learning_rate=2e-5, weight_decay=0.0)
"""Protocol of the paper (Table 1), except for T, which is 10 epochs there."""
