"""The model in PyTorch: ViT, quantizer, token hash, VQ-Attention, adapted language model."""
