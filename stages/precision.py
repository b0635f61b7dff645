"""What number formats this machine multiplies fast in hardware."""

from functools import cache
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: by AMX, or by AVX-512's instructions on an AMD.

    Intel's with these instructions but without AMX, as virtual machines show them, take twice as long as in float32.
    Told from the processor's flags and not by the clock: what is chosen changes the last bits of every result.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and CPUINFO.is_file() and "AuthenticAMD" in CPUINFO.read_text()
