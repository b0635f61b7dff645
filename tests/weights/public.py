"""The public networks at toy size, written anew from their published structure: the source that imports must match.

Their attribute names are those of the public code, so that `state_dict` has its names.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm
from transformers import RobertaConfig, RobertaModel

from stages.params import Params


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """(B, N, C) each -> (B, N, C): softmax(q k / sqrt(d) + bias) v, written out."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    scores = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1]) + bias
    return (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)


# UNet


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, emb: int, groups: int):
        super().__init__()
        conv = nn.Conv2d(inner, outer, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, inner), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outer))
        last = nn.Conv2d(outer, outer, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, outer), nn.SiLU(), nn.Dropout(0.0), last)
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


class Gate(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, heads), Attention(width, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(Gate(width), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        return x + self.ff.net(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads)])

    def forward(self, x: Tensor, _emb: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        h = self.transformer_blocks[0](h)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Down(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, _emb: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, _emb: Tensor | None = None) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Plain(nn.Conv2d):
    def forward(self, x: Tensor, _emb: Tensor) -> Tensor:
        return super().forward(x)


class PublicUNet(nn.Module):
    """openaimodel.UNetModel with use_spatial_transformer, no context, and film concatenated with the time."""

    def __init__(self, p: Params):
        super().__init__()
        widths, groups, layers = p.ldm.block_out_channels, p.ldm.norm_num_groups, p.ldm.layers_per_block
        base, channels = widths[0], p.latent_shape[0]
        emb, self.base = 4 * base, base
        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.film_emb = nn.Linear(p.clap.projection_dim, emb)

        def blocks(inner: int, outer: int, attends: bool) -> nn.ModuleList:
            attention = [Transformer(outer, outer // p.ldm.head_dim, groups)] if attends else []
            return nn.ModuleList([Residual(inner, outer, 2 * emb, groups), *attention])

        self.input_blocks = nn.ModuleList([nn.ModuleList([Plain(channels, base, 3, padding=1)])])
        kept, width = [base], base
        for level, (outer, attends) in enumerate(zip(widths, p.ldm.attention, strict=True)):
            for _ in range(layers):
                self.input_blocks.append(blocks(width, outer, attends))
                width = outer
                kept.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([Down(width)]))
                kept.append(width)
        middle = (
            Residual(width, width, 2 * emb, groups),
            Transformer(width, width // p.ldm.head_dim, groups),
            Residual(width, width, 2 * emb, groups),
        )
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for layer in range(layers + 1):
                block = blocks(width + kept.pop(), widths[level], p.ldm.attention[level])
                width = widths[level]
                if level and layer == layers:
                    block.append(Up(width))
                self.output_blocks.append(block)
        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        half = self.base // 2
        angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1))
        emb = torch.cat([time, self.film_emb(y)], -1)
        kept, h = [], z
        for block in self.input_blocks:
            for module in block:
                h = module(h, emb)
            kept.append(h)
        for module in self.middle_block:
            h = module(h, emb)
        for block in self.output_blocks:
            h = torch.cat([h, kept.pop()], 1)
            for module in block:
                h = module(h, emb)
        return self.out(h)


# VAE


class VaeResidual(nn.Module):
    def __init__(self, inner: int, outer: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inner, eps=1e-6), nn.GroupNorm(groups, outer, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class VaeAttention(nn.Module):
    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        flat = [part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v)]
        return x + self.proj_out(attend(*flat, heads=1).transpose(1, 2).unflatten(2, x.shape[2:]))


def _middle(width: int, groups: int) -> nn.Module:
    mid = nn.Module()
    mid.block_1, mid.attn_1 = VaeResidual(width, width, groups), VaeAttention(width, groups)
    mid.block_2 = VaeResidual(width, width, groups)
    return mid


def _through(mid: nn.Module, h: Tensor) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(h)))


class Encoder(nn.Module):
    def __init__(self, p: Params):
        super().__init__()
        widths, groups = p.vae.block_out_channels, p.vae.norm_num_groups
        self.conv_in = nn.Conv2d(1, widths[0], 3, padding=1)
        self.down, width = nn.ModuleList(), widths[0]
        for level, outer in enumerate(widths):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(p.vae.layers_per_block):
                stage.block.append(VaeResidual(width, outer, groups))
                width = outer
            if level < len(widths) - 1:
                stage.downsample = nn.Module()
                stage.downsample.conv = nn.Conv2d(width, width, 3, stride=2)
            self.down.append(stage)
        self.mid = _middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 2 * p.vae.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(_through(self.mid, h))))


class Decoder(nn.Module):
    def __init__(self, p: Params):
        super().__init__()
        widths, groups = p.vae.block_out_channels, p.vae.norm_num_groups
        width = widths[-1]
        self.conv_in = nn.Conv2d(p.vae.latent_channels, width, 3, padding=1)
        self.mid = _middle(width, groups)
        stages = []
        for level in reversed(range(len(widths))):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(p.vae.layers_per_block + 1):
                stage.block.append(VaeResidual(width, widths[level], groups))
                width = widths[level]
            if level:
                stage.upsample = Up(width)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = _through(self.mid, self.conv_in(z))
        for stage in reversed(self.up):
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class PublicVae(nn.Module):
    def __init__(self, p: Params):
        super().__init__()
        channels = p.vae.latent_channels
        self.encoder, self.decoder = Encoder(p), Decoder(p)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def moments(self, mel: Tensor) -> Tensor:
        """Mel (B, T, F) -> mean and log-variance (B, 2 C, T / P, F / P)."""
        return self.quant_conv(self.encoder(mel[:, None]))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))[:, 0]


# HiFi-GAN


class VocoderResidual(nn.Module):
    def __init__(self, width: int, kernel: int, dilations: list[int]):
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            return weight_norm(nn.Conv1d(width, width, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2))

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class PublicHifiGan(nn.Module):
    """HiFi-GAN's generator (V1) with weight norm: mel (B, T, F) -> (B, L)."""

    def __init__(self, p: Params):
        super().__init__()
        v = p.vocoder
        self.conv_pre = weight_norm(nn.Conv1d(p.mel.n_mels, v.initial_channels, 7, padding=3))
        self.ups, self.resblocks, width = nn.ModuleList(), nn.ModuleList(), v.initial_channels
        self.kernels = len(v.resblock_kernel_sizes)
        for rate, kernel in zip(v.upsample_rates, v.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            width //= 2
            self.resblocks.extend(VocoderResidual(width, k, v.resblock_dilations) for k in v.resblock_kernel_sizes)
        self.conv_post = weight_norm(nn.Conv1d(width, 1, 7, padding=3))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel.transpose(1, 2))
        for level, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            blocks = self.resblocks[level * self.kernels : (level + 1) * self.kernels]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return self.conv_post(F.leaky_relu(x)).tanh()[:, 0]


# CLAP


class WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        rows, columns = (a.flatten() for a in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
        dy, dx = rows[:, None] - rows[None], columns[:, None] - columns[None]
        self.register_buffer("relative_position_index", (dy + window - 1) * (2 * window - 1) + dx + window - 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, number of windows, N, C); mask (number of windows, N, N)."""
        q, k, v = self.qkv(x.flatten(0, 1)).chunk(3, -1)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask.repeat(len(x), 1, 1)[:, None]
        return self.proj(attend(q, k, v, self.heads, bias)).unflatten(0, x.shape[:2])


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, side: int, window: int, shifted: bool):
        super().__init__()
        self.side, self.window = side, min(window, side)
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, self.window)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if self.shift:
            self.register_buffer("attn_mask", self._mask())

    def _windows(self, image: Tensor) -> Tensor:
        """(B, S, S, C) -> (B, number of windows, N, C)."""
        w = self.window
        return image.unflatten(2, (-1, w)).unflatten(1, (-1, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _image(self, windows: Tensor) -> Tensor:
        w, n = self.window, self.side // self.window
        return windows.unflatten(2, (w, w)).unflatten(1, (n, n)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _mask(self) -> Tensor:
        """-100 between positions that only the cyclic shift has put side by side."""
        edge = torch.zeros(self.side)
        edge[-self.window : -self.shift], edge[-self.shift :] = 1, 2
        region = (3 * edge[:, None] + edge[None])[None, :, :, None]
        flat = self._windows(region).squeeze(0).squeeze(-1)
        return (flat[:, :, None] != flat[:, None]).float() * -100.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x).unflatten(1, (self.side, self.side)).roll((-self.shift, -self.shift), (1, 2))
        mask = self.attn_mask if self.shift else None
        h = self._image(self.attn(self._windows(h), mask)).roll((self.shift, self.shift), (1, 2))
        x = x + h.flatten(1, 2)
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Merging(nn.Module):
    def __init__(self, width: int, side: int):
        super().__init__()
        self.side = side
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        image = x.unflatten(1, (self.side, self.side))
        corners = [image[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, -1).flatten(1, 2)))


class Htsat(nn.Module):
    def __init__(self, p: Params):
        super().__init__()
        a = p.clap.audio
        self.ratio, self.bins = a.spec_size // p.clap.n_mels, p.clap.n_mels
        self.spec_size = a.spec_size
        self.bn0 = nn.BatchNorm2d(p.clap.n_mels)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(1, a.embed_dim, 4, 4)
        self.patch_embed.norm = nn.LayerNorm(a.embed_dim)
        self.layers, width, side = nn.ModuleList(), a.embed_dim, a.spec_size // 4
        for number, (depth, heads) in enumerate(zip(a.depths, a.heads, strict=True)):
            layer = nn.Module()
            layer.blocks = nn.ModuleList(SwinBlock(width, heads, side, a.window_size, i % 2 == 1) for i in range(depth))
            if number < len(a.depths) - 1:
                layer.downsample = Merging(width, side)
                width, side = 2 * width, side // 2
            self.layers.append(layer)
        self.norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        """dB mel (B, T, F) -> (B, C)."""
        x = self.bn0(mel[:, None].transpose(1, 3)).transpose(1, 3)
        x = F.interpolate(x, (self.spec_size * self.ratio, self.bins), mode="bicubic", align_corners=True)
        parts = x.transpose(2, 3).unflatten(3, (self.ratio, -1))  # (B, 1, F, ratio, T / ratio)
        h = self.patch_embed.proj(parts.transpose(2, 3).flatten(2, 3))
        h = self.patch_embed.norm(h.flatten(2).transpose(1, 2))
        for layer in self.layers:
            for block in layer.blocks:
                h = block(h)
            if hasattr(layer, "downsample"):
                h = layer.downsample(h)
        return self.norm(h).mean(1)


class PublicClap(nn.Module):
    def __init__(self, p: Params):
        super().__init__()
        text, joint = p.clap.text, p.clap.projection_dim
        self.audio_branch = Htsat(p)
        self.text_branch = RobertaModel(
            RobertaConfig(
                vocab_size=text.vocab_size, hidden_size=text.hidden_size, num_hidden_layers=text.layers,
                num_attention_heads=text.heads, intermediate_size=text.intermediate_size,
                max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
            )
        )  # fmt: skip
        width = p.clap.audio.embed_dim * 8
        self.audio_projection = nn.Sequential(nn.Linear(width, joint), nn.ReLU(), nn.Linear(joint, joint))
        self.text_projection = nn.Sequential(nn.Linear(text.hidden_size, joint), nn.ReLU(), nn.Linear(joint, joint))
        self.logit_scale_a, self.logit_scale_t = nn.Parameter(torch.tensor(2.5)), nn.Parameter(torch.tensor(2.7))

    def audio(self, mel: Tensor) -> Tensor:
        return F.normalize(self.audio_projection(self.audio_branch(mel)), dim=-1)

    def text(self, tokens: dict[str, Tensor]) -> Tensor:
        return F.normalize(self.text_projection(self.text_branch(**tokens).pooler_output), dim=-1)
