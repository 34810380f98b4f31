"""Base weights: where they come from (`sources`), how they get here (`fetch`), how they are read (`vit`)."""
