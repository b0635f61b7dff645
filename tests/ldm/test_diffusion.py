"""The noise schedule and targets against diffusers, the UNet against the public configuration."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional as F

from stages.errors import ModelError
from stages.ldm import diffusion
from stages.ldm.conditioning import interpolate, with_null
from stages.ldm.model import LatentDiffusion, build_unet, read_weights
from stages.params import preset, resolve

LDM = preset("paper").ldm


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(5, 3, 8, 4, generator=generator) for _ in range(2))
    return z, noise, torch.tensor([0, 1, 250, 500, 999])


def test_noise_and_targets_are_those_of_diffusers(drawn):
    z, noise, t = drawn
    theirs = DDPMScheduler(1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    alpha_bar = diffusion.alphas_cumprod(LDM)
    torch.testing.assert_close(alpha_bar, theirs.alphas_cumprod, rtol=1e-6, atol=0)
    ours = diffusion.add_noise(z, noise, alpha_bar[t])
    torch.testing.assert_close(ours, theirs.add_noise(z, noise, t), rtol=1e-5, atol=1e-6)
    velocity = diffusion.target(z, noise, alpha_bar[t], "v_prediction")
    torch.testing.assert_close(velocity, theirs.get_velocity(z, noise, t), rtol=1e-5, atol=1e-6)
    assert diffusion.target(z, noise, alpha_bar[t], "epsilon") is noise


def test_v_and_noise_give_the_clean_latent_back(drawn):
    z, noise, t = drawn
    alpha_bar = diffusion.alphas_cumprod(LDM)[t]
    noisy = diffusion.add_noise(z, noise, alpha_bar)
    v = diffusion.target(z, noise, alpha_bar, "v_prediction")
    a = alpha_bar[:, None, None, None]
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * v, z, rtol=1e-4, atol=1e-5)


def test_min_snr_weights_by_hand():
    alpha_bar = torch.tensor([0.9, 0.5, 0.1])  # SNR 9, 1, 1/9
    epsilon = diffusion.min_snr_weights(alpha_bar, 5.0, "epsilon")
    torch.testing.assert_close(epsilon, torch.tensor([5 / 9, 1.0, 1.0]))
    velocity = diffusion.min_snr_weights(alpha_bar, 5.0, "v_prediction")
    torch.testing.assert_close(velocity, torch.tensor([5 / 10, 1 / 2, (1 / 9) / (10 / 9)]))


def test_released_unet_has_the_public_shapes():
    """Against the configuration that diffusers' conversion script makes of the public one."""
    with torch.device("meta"):
        ours = build_unet(preset("released"))
        public = UNet2DConditionModel(
            sample_size=128, in_channels=8, out_channels=8,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
            up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
            block_out_channels=(128, 256, 384, 640), layers_per_block=2, cross_attention_dim=(128, 256, 384, 640),
            class_embed_type="simple_projection", projection_class_embeddings_input_dim=512,
            class_embeddings_concat=True,
        )  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in public.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == shapes
    assert len(shapes) == 690
    assert shapes["class_embedding.weight"] == (512, 512)
    assert shapes["down_blocks.0.resnets.0.time_emb_proj.weight"] == (128, 1024)  # time and CLAP, side by side
    heads = [block.attentions[0].transformer_blocks[0].attn1.heads for block in ours.down_blocks[1:]]
    assert heads == [8, 12, 20]  # 32 channels each


def test_paper_unet_takes_its_latents():
    params = preset("paper")
    with torch.device("meta"):
        model = LatentDiffusion(params, build_unet(params))
        made = model(torch.zeros(2, *params.latent_shape), torch.zeros(2), torch.zeros(2, 512))
    assert made.shape == (2, 16, 128, 16)
    assert 180e6 < sum(p.numel() for p in model.parameters()) < 190e6


def test_null_replaces_the_dropped_and_learns_only_from_them():
    condition, null = torch.ones(3, 4), torch.full((4,), 7.0, requires_grad=True)
    mixed = with_null(condition, null, torch.tensor([False, True, False]))
    assert mixed[:, 0].tolist() == [1, 7, 1]
    mixed.sum().backward()
    assert null.grad.tolist() == [1, 1, 1, 1]
    assert with_null(condition, null, None) is condition


def test_text_interpolation_is_normalised():
    first, second = F.normalize(torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    weight = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
    found = interpolate(first, second, weight)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(found[0], second[0])
    torch.testing.assert_close(found[5], first[5])
    blend = 0.2 * first[1] + 0.8 * second[1]
    torch.testing.assert_close(found[1], blend / blend.norm())


def test_weights_go_out_and_come_back(tmp_path):
    params = preset("tiny")
    torch.manual_seed(0)
    model, other = (LatentDiffusion(params, build_unet(params)) for _ in range(2))
    with torch.no_grad():
        model.null.normal_()
    model.save(tmp_path)
    read_weights(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    wider = resolve({"preset": "tiny", "ldm": {"block_out_channels": [32, 96]}})
    with pytest.raises(ModelError, match="cannot be loaded"):
        read_weights(LatentDiffusion(wider, build_unet(wider)), tmp_path)
    with pytest.raises(ModelError, match="There is no"):
        read_weights(other, tmp_path / "nothing")
