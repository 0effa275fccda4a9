"""Reports: records of tickets become flat rows, tables, figures and the page of a study. Pure, without torch."""

FIGURES = (
    *("score_by_sparsity", "score_by_cost", "denoisers", "agreement_by_layer", "layer_sparsity"),
    *("mask_similarity", "mask_similarity_by_sparsity", "mask_similarity_by_layer"),
    *("paper_figure_1", "paper_figure_3"),
)
"""Names of the figures of a study."""
