"""Training and evaluation data: the generated world of moving shapes, question files, feature cache."""
