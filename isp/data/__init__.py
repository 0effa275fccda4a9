"""Data: origin (`sources`), splits (`splits`), and conversion to batches (`images`, `texts`, `glyphs`)."""
