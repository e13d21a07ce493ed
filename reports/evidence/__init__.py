"""Evidence: reasons to doubt a number, and guarantees that support it."""
