"""A tiny study whose jobs and steps can be counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STUDY: dict[str, Any] = {
    "study": "tiny",
    "training": {"clip_tiny": {"steps": 100, "batch_size": 30, "learning_rate": 5e-4}},
    "tasks": {"digits": {"num_validation": 200}},
    "variants": {
        "dense": {"method": "dense"},
        "isp": {"method": "isp_mean", "settings": {"rate": 0.5, "segment_fraction": 0.1, "denoisers": 2}},
        "lth": {"method": "lth", "settings": {"rate": 0.5}},
    },
    "grid": [
        {
            "backbone": "clip_tiny",
            "tasks": ["digits"],
            "variants": ["dense", "isp", "lth"],
            "sparsities": ["0.5", "0.75"],
            "seeds": [0],
        }
    ],
}
