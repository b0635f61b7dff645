"""CLAP: one embedding space for audio and text."""
