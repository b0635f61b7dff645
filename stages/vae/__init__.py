"""VAE: mel-spectrogram to latents and back."""
