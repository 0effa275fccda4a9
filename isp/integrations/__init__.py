"""Adapters to training loops of other libraries, one file per library; each imports its library, `isp` does not."""
