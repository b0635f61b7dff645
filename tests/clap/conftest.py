"""`import stages` comes before transformers, which imports torchaudio."""

import stages  # noqa: F401
