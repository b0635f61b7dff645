"""HiFi-GAN: mel-spectrogram to waveform."""
