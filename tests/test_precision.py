"""Which processors count as fast in bfloat16."""

import pytest
import torch

from stages import precision


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "fast"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),  # measured: half the speed of float32
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_fast_is_what_was_measured_to_be_fast(monkeypatch, tmp_path, amx, avx512, vendor, fast):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    assert precision.cpu_multiplies_bfloat16.__wrapped__() is fast
