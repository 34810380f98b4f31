"""The VQToken model in PyTorch: ViT, quantizer, token hash, VQ-Attention, and the language model's adapter."""
