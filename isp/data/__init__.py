"""Data: where it comes from (`sources`), how it is split (`splits`), how it becomes batches (`images`, `glyphs`)."""
