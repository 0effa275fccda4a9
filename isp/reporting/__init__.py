"""From the records of tickets to flat rows, tables and figures; pure functions that need no torch."""

FIGURES = (
    *("score_by_sparsity", "score_by_cost", "denoisers", "agreement_by_layer", "layer_sparsity"),
    *("mask_similarity", "mask_similarity_by_sparsity", "mask_similarity_by_layer"),
    *("paper_figure_1", "paper_figure_3"),
)
"""The figures of a study."""
