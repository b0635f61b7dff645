"""Which revision of its results each stage of dvc.yaml makes.

Raise a stage's number when it gives other results than before for the same input; a refactoring or a message is no
reason. DVC reads the numbers from a project's `versions.yaml`, and runs again the stages whose number has changed.
`tests/test_pipeline.py` fails where results moved and the number did not.
"""

VERSIONS = {
    "manifest": 1,
    "resample": 1,
    "beats": 1,
    "captions": 1,
    "shards": 1,
    "clap": 1,
    "vae": 1,
    "vocoder": 1,
    "latents": 1,
    "ldm": 1,
    "few_steps": 1,
    "generate": 1,
    "evaluate": 1,
    "report": 1,
}
