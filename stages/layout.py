"""Where each stage keeps what it makes, below one work folder; commands default to these paths."""

from dataclasses import dataclass
from pathlib import Path

from stages.errors import DataError

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Layout:
    """Paths of one project's intermediate and final results, in data-flow order."""

    work: Path = Path("work")

    @property
    def manifest(self) -> Path:
        """The catalogued collection: manifest.csv, manifest.json (its audio root), rejected.csv."""
        return self.work / "manifest"

    @property
    def audio(self) -> Path:
        """Resampled mono tracks with a manifest.csv of their own."""
        return self.work / "audio"

    @property
    def beats(self) -> Path:
        """beats.jsonl: beats, downbeats, metre, tempo and confidence of each track."""
        return self.work / "beats"

    @property
    def captions(self) -> Path:
        """captions.jsonl, and prompts.csv of the test split."""
        return self.work / "captions"

    @property
    def shards(self) -> Path:
        """HDF5 shards with audio, beats and captions, and their index.json."""
        return self.work / "shards"

    @property
    def models(self) -> Path:
        """One folder per trained model."""
        return self.work / "models"

    @property
    def clap(self) -> Path:
        return self.models / "clap"

    @property
    def vae(self) -> Path:
        return self.models / "vae"

    @property
    def vocoder(self) -> Path:
        return self.models / "vocoder"

    @property
    def few_steps(self) -> Path:
        """The pipeline with weights for few steps."""
        return self.models / "few-steps"

    @property
    def ldm(self) -> Path:
        """The whole text-to-music pipeline as one diffusers-style folder."""
        return self.models / "ldm"

    @property
    def latents(self) -> Path:
        """VAE posteriors and CLAP embeddings of every training window, and their index.json."""
        return self.work / "latents"

    @property
    def checkpoints(self) -> Path:
        """Training states to resume from, one folder per training and params digest."""
        return self.work / "checkpoints"

    @property
    def generated(self) -> Path:
        """Clips generated from the test prompts, with manifest.jsonl."""
        return self.work / "generated"

    @property
    def metrics(self) -> Path:
        """One folder per evaluation with its metrics.json."""
        return self.work / "metrics"

    @property
    def listening(self) -> Path:
        """A listening test: its answers (survey.db), its blinded clips, and what it refused (survey.log)."""
        return self.work / "listening"

    @property
    def studio(self) -> Path:
        """What people made in the studio, one folder for each browser."""
        return self.work / "studio"

    @property
    def report(self) -> Path:
        """report.html, self-contained."""
        return self.work / "report"


def packaged(name: str) -> Path:
    """A file that comes with musicldm: in a checkout's root, or inside an installed package. Raises DataError."""
    for folder in (PACKAGE, PACKAGE.parent):
        if (folder / name).exists():
            return folder / name
    raise DataError(f"This installation has no {name}.", "Install musicldm again from its wheel or repository.")
