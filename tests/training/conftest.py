"""The toy project of the diffusion model's tests: real clips in shards, latents, and networks that fit."""

from tests.ldm.conftest import project

__all__ = ["project"]
