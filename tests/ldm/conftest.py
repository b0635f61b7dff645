"""The toy project, made once for all tests of this folder."""

from types import SimpleNamespace

import pytest

from stages.data.shards import write_shards
from tests.ldm.toy import save_untrained, toy_params, write_collection


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """Paths of a toy project: work, shards, clap, vae, vocoder, latents, and its params."""
    from stages.ldm.latents import prepare

    work = tmp_path_factory.mktemp("project")
    params = toy_params()
    write_collection(work)
    write_shards(
        work / "audio" / "manifest.csv", work / "beats.jsonl", work / "captions.jsonl", work / "shards", params
    )
    save_untrained(work, params)
    paths = SimpleNamespace(
        work=work, params=params, **{name: work / name for name in ("shards", "clap", "vae", "vocoder", "latents")}
    )
    paths.made = prepare(params, paths.shards, paths.vae, paths.clap, paths.latents)
    return paths
