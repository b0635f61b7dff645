"""Beat Transformers on disk: a sealed folder with config.json and model.safetensors."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.beats.features import FrontEnd, Mel
from stages.beats.transformer import BeatTransformer, Sizes
from stages.errors import ModelError
from stages.store import model_card, model_folder, read_config, verify_model, write_json
from stages.training.checkpoint import load_weights

KIND = "beats"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
REMEDY = "Train, copy or import it again."
WINDOW_SECONDS, CONTEXT_SECONDS = 120.0, 12.0  # of inference: flat memory, and what a frame sees on either side
SCALE_DB = 40.0  # the trained network's input is dB / 40 + 1, about -1 to 1


class Tracker(nn.Module):
    """A network with its front end: log-mel in dB to the probabilities of beats and downbeats."""

    def __init__(self, network: BeatTransformer, front_end: FrontEnd, scaled: bool = True) -> None:
        super().__init__()
        self.network, self.front_end, self.scaled = network, front_end, scaled

    def scale(self, mel: Tensor) -> Tensor:
        """dB as the network was trained on it; the published one takes it as it is."""
        return mel / SCALE_DB + 1 if self.scaled else mel

    @torch.inference_mode()
    def forward(self, stems: list[Mel]) -> np.ndarray:
        """One (T, 128) for each stem -> (T, 2) float32 probabilities, in windows that see their neighbours."""
        frames, fps = len(stems[0]), self.front_end.fps
        size, context = int(WINDOW_SECONDS * fps), int(CONTEXT_SECONDS * fps)
        device = self.network.out_linear.weight.device
        parts = [np.empty((0, 2), dtype=np.float32)]
        for start in range(0, frames, size):
            first = max(start - context, 0)
            window = np.stack([stem[first : start + size + context] for stem in stems])
            logits, _ = self.network(self.scale(torch.from_numpy(window)).to(device).unsqueeze(0))
            parts.append(logits[0, start - first : start - first + size].sigmoid().float().cpu().numpy())
        return np.concatenate(parts)


@dataclass(frozen=True)
class Config:
    """What config.json holds."""

    sizes: Sizes
    front_end: FrontEnd
    scaled: bool

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Config":
        sizes = Sizes(**{**row["sizes"], "channels": tuple(row["sizes"]["channels"])})
        return cls(sizes, FrontEnd(**row["front_end"]), row["scaled"])


def save_tracker(tracker: Tracker, path: Path, card: dict[str, Any], half: bool = True) -> None:
    """Write a sealed model folder. Half precision moves no probability by more than a thousandth or so: enough for
    our own trackers, too much for what is compared with its original."""
    config = Config(tracker.network.sizes, tracker.front_end, tracker.scaled)
    with model_folder(path, KIND, card) as folder:
        write_json(folder / CONFIG, asdict(config))
        dtype = torch.float16 if half else torch.float32
        state = {name: value.to(dtype).contiguous() for name, value in tracker.network.state_dict().items()}
        save_file(state, folder / WEIGHTS)


def load_tracker(path: Path, device: str = "cpu") -> Tracker:
    """The tracker of a folder of `train beats` or `model import beat-transformer`, in float32.

    Raises ModelError when it is another model's, a file differs from its seal, or they do not make a tracker.
    """
    model_card(path, KIND)
    problems = verify_model(path)
    if problems:
        raise ModelError(f"{path} differs from its seal: {'; '.join(problems)}.", REMEDY)
    try:
        config = Config.from_row(read_config(path / CONFIG, REMEDY))
        network = BeatTransformer(config.sizes)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{path / CONFIG} is not a beat tracker's: {error}.", REMEDY) from error
    load_weights(network, path / WEIGHTS, REMEDY)
    return Tracker(network, config.front_end, config.scaled).eval().to(device)
