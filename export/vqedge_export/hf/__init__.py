"""Models of Hugging Face folders become checkpoints: `vqedge import`."""
