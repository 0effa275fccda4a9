"""all-MiniLM-L6-v2, trained for sentence embeddings (6 layers of width 384, 10,616,832 prunable weights)."""

from isp.backbones._bert import BertBackbone
from isp.data.sources import HubModel
from isp.training import Training

BACKBONE = BertBackbone(
    source=HubModel(id="sentence-transformers/all-MiniLM-L6-v2", revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf"),
    architecture={
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
)

TRAINING = Training(steps=300, batch_size=32, learning_rate=1e-4, warmup_steps=30, weight_decay=0.01)
