"""The revision of each stage's results.

Raise a stage's number when it gives other results than before for the same input, not for a refactoring or a message.
DVC reads the numbers from a project's `versions.yaml` and reruns the stages whose number has changed.
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
