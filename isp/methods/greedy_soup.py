"""Greedy soup: fine-tuned models are added to an average as long as its validation score improves.

Wortsman et al. 2022, "Model soups", Recipe 1; a baseline of Instant Model Soup (Table 6, 8 models). The members are
those of `uniform_soup`. They are tried in order of decreasing validation score, and one is added only if the average
with it is strictly better, so the soup is never below its best member on the examples it was chosen by. All evaluations
are counted as cost. Departures: see `uniform_soup` and `isp.soups.greedy`.
"""

from __future__ import annotations

from isp import soups
from isp.methods import Family
from isp.methods.uniform_soup import Settings as UniformSettings

FAMILY: Family = "souped"
VERSION = 1

choose = soups.greedy


class Settings(UniformSettings):
    """Settings of `uniform_soup`."""
