"""What builds the repository's documentation; not part of the package."""
