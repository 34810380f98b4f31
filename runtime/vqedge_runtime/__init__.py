"""vqedge."""
