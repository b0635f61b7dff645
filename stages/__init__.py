"""The work of `musicldm`, in data-flow order: audio, data, beats, clap, vae, vocoder, ldm, generate, evaluate."""

from stages import caches
from stages.audio import torchaudio_cpu

caches.install()
torchaudio_cpu.install()
