"""Published Beat Transformer checkpoints (`fold_k_trf_param.pt`) as model folders."""

from pathlib import Path

from stages.beats.features import PUBLISHED
from stages.beats.model import Tracker, save_tracker
from stages.beats.transformer import BeatTransformer, Sizes
from stages.store import sha256
from stages.tensors import fit, read_tensors

REMEDY = "Take checkpoint/fold_0_trf_param.pt ... fold_7_trf_param.pt of github.com/zhaojw1998/Beat-Transformer."


def import_beat_transformer(file: Path, out: Path) -> int:
    """Convert a published checkpoint, loaded strictly and without unpickling, to the folder `out`.

    Returns its number of parameters. Raises ModelError when it is not a Beat Transformer of the published sizes.
    """
    network = BeatTransformer(Sizes())
    fit(network, read_tensors(file, REMEDY), file, REMEDY)
    card = {"source": file.name, "source_sha256": sha256(file), "stems": Sizes().stems}
    save_tracker(Tracker(network.eval(), PUBLISHED, scaled=False), out, card, half=False)
    return sum(parameter.numel() for parameter in network.parameters())
