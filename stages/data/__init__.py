"""Collections of captioned music: catalog, manifest, captions, shards, datasets."""
