"""Data: where it comes from (`sources`), how it is split (`splits`), and how it becomes batches (`images`, `glyphs`)."""
