"""A training run in parts: its clips, its steps, its folder. `vqedge.train` is the story."""
