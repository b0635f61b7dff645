"""The one mel front-end against librosa, torchaudio and CLAP's own feature extractor; torchaudio itself."""

import math
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from stages import params
from stages.audio.mel import clap_mel, clip_mel
from tests import DEMO


@pytest.fixture(scope="module")
def music():
    """(1, 163840) float32, one clip of real music at 16 kHz."""
    samples, rate = soundfile.read(DEMO / "singularity_nebula.ogg", frames=163_840, dtype="float32")
    assert rate == 16_000
    return torch.from_numpy(samples)[None]


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_clip_mel_equals_a_plain_fft_with_librosa_filters(preset, music):
    from librosa.filters import mel

    p = params.preset(preset)
    ours = clip_mel(p)(music)
    padded = np.pad(music[0].numpy().astype(np.float64), 512, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::160][:1024]
    periodic_hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    magnitude = np.abs(np.fft.rfft(frames * periodic_hann))
    filters = mel(sr=16_000, n_fft=1024, n_mels=p.mel.n_mels, fmin=0, fmax=8000)
    theirs = np.log(np.maximum(magnitude @ filters.T, 1e-5))
    assert ours.shape == (1, 1024, p.mel.n_mels)
    np.testing.assert_allclose(ours[0].numpy(), theirs, atol=2e-3)  # the log magnifies float32 at the floor
    assert np.abs(ours[0].numpy() - theirs).mean() < 1e-5


def test_clip_mel_equals_torchaudio(music):
    import torchaudio

    p = params.preset("paper")
    transform = torchaudio.transforms.MelSpectrogram(
        16_000, 1024, 1024, 160, f_min=0.0, f_max=8000.0, n_mels=128, power=1.0, norm="slaney", mel_scale="slaney"
    )
    theirs = transform(music)[..., :1024].clamp(min=1e-5).log().transpose(1, 2)
    ours = clip_mel(p)(music)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert (ours - theirs).abs().mean() < 1e-4


def test_clap_mel_equals_transformers(music):
    from transformers import ClapFeatureExtractor

    waveform = torch.randn(480_000, generator=torch.Generator().manual_seed(0)) * 0.1
    extractor = ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad", frequency_min=50)
    theirs = extractor(waveform.numpy(), sampling_rate=48_000, return_tensors="pt").input_features[0, 0]
    ours = clap_mel(params.preset("paper"))(waveform[None])[0]
    assert ours.shape == theirs.shape == (1001, 64)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-3, rtol=0)


def test_silence_is_the_floor():
    mel = clip_mel(params.preset("paper"))
    assert mel.silence == pytest.approx(math.log(1e-5)) == pytest.approx(-11.513, abs=1e-3)
    assert torch.equal(mel(torch.zeros(1, 3200)), torch.full((1, 20, 128), mel.silence))


def test_autocast_does_not_reach_the_front_end(music):
    mel = clip_mel(params.preset("paper"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mel(music)
    assert torch.equal(inside, mel(music))


def test_torchaudio_works_on_this_torch(music):
    """What we use of it runs; on a CPU-only torch the extension is off, and alignment says why it cannot."""
    import torchaudio

    resampled = torchaudio.functional.resample(music, 16_000, 48_000)
    assert resampled.shape == (1, 3 * 163_840)
    back = torchaudio.functional.resample(resampled, 48_000, 16_000)
    assert (back - music).abs()[:, 1000:-1000].mean() < 2e-3
    assert torchaudio.functional.lfilter(music, torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0])).shape == music.shape
    if torch.version.cuda is None:
        with pytest.raises(RuntimeError, match="CUDA build"):
            torchaudio.functional.forced_align(torch.zeros(1, 5, 3), torch.ones(1, 2, dtype=torch.int32))


def test_the_finder_leaves_a_cuda_torch_alone():
    """With torch.version.cuda set, the real extension is looked for, as without us."""
    code = (
        "import stages, torch; torch.version.cuda = '13.0'\n"
        "import importlib.util; spec = importlib.util.find_spec\n"
        "import sys; finder = sys.meta_path[0]\n"
        "print(type(finder).__name__, finder.find_spec('torchaudio._extension'), finder.find_spec('torchaudio'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["_CpuExtension", "None", "None"]
