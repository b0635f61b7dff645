"""What every trained model's card says of how it was made."""

from typing import Any

from stages.params import Params
from stages.training.loop import History


def about(params: Params) -> dict[str, Any]:
    """The parameters of a model, whole, and their digest."""
    return {"preset": params.preset, "params": params.model_dump(mode="json"), "params_digest": params.digest()}


def of_training(params: Params, history: History, data_digest: str) -> dict[str, Any]:
    """The same, with the data, the steps, the last validation, and the figures of the finished model."""
    made = {"data_digest": data_digest, "steps": history.steps, "losses": history.valid}
    return about(params) | made | history.figures
