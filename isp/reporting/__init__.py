"""From the records of tickets to flat rows, tables and figures; pure functions that need no torch."""

FIGURES = ("score_by_sparsity", "score_by_cost", "denoisers", "layer_sparsity")
"""The figures of a study."""
