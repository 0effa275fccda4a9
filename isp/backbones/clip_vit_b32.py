"""CLIP ViT-B/32 with OpenAI's weights, as in the paper (12 layers of width 768, 84,934,656 prunable weights)."""

from isp.backbones._open_clip import ClipBackbone
from isp.data.sources import HubModel
from isp.training import Training

BACKBONE = ClipBackbone(
    architecture="ViT-B-32-quickgelu",  # these weights were not trained with the activation of ViT-B-32
    source=HubModel(id="timm/vit_base_patch32_clip_224.openai", revision="a6f597a30f7b82c51704746581f9a4e41421e878"),
)

TRAINING = Training(steps=1000, batch_size=128, learning_rate=1e-5, warmup_steps=100, weight_decay=0.1)
"""Protocol of the paper (Table 1), except for T (22 epochs there) and the warm-up (500 steps in the authors' code)."""
