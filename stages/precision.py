"""What number formats this machine multiplies in hardware."""

import torch


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 products (AMX, AVX-512 BF16): faster than in float32."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
