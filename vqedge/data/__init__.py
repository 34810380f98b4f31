"""Data: the generated world of moving shapes, question files, the feature cache."""
