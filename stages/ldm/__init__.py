"""Latent diffusion with beat-synchronous mixup."""
