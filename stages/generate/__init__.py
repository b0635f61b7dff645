"""Text to music with a trained model."""
