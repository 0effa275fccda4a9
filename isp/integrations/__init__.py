"""Adapters to training loops of other libraries, one file per library; only that file imports the library."""
