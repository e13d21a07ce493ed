"""Statistics: pure functions on arrays and on frames of records."""
