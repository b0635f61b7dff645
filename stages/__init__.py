"""The work of `musicldm`, in data-flow order: audio, data, beats, clap, vae, vocoder, ldm, generate, evaluate."""

from stages.audio import torchaudio_cpu

torchaudio_cpu.install()
