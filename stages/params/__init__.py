"""Every number that changes a result: typed, frozen, checked as a whole before any work starts.

The field defaults are the paper's values (preset `paper`); the other presets say only what they change.
A params.yaml names a preset and overrides any key of it; unknown keys are refused. This package is the
only home of defaults and imports nothing heavy.
"""

import json
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.errors import ParamsError
from stages.params.combinations import impossible
from stages.params.presets import PRESETS
from stages.params.sections import (
    Audio,
    Beats,
    Captions,
    Clap,
    Evaluate,
    Generate,
    Ldm,
    Manifest,
    Params,
    Section,
    Tempo,
    Training,
    Vae,
)
from stages.params.yaml12 import MOST_BYTES, MOST_LEVELS, read_yaml, write_yaml

__all__ = [
    "PRESETS", "Audio", "Beats", "Captions", "Clap", "Evaluate", "Generate", "Ldm", "Manifest", "Params", "Section",
    "Tempo", "Training", "Vae", "load", "preset", "resolve", "said_of_sampling", "sampling", "to_yaml",
]  # fmt: skip

Problem = tuple[str, str]
"""A key path, and what is wrong with it."""
DEFAULT_PRESET = "small"  # where there is no params.yaml
SAMPLING = ("sampler", "steps", "guidance", "guidance_interval", "eta", "reuse", "candidates")
"""Keys of `generate` that belong to a model rather than to a run."""
MOST_TOLD, LONGEST_SHOWN = 20, 60  # mistakes of one file, and characters of a value, in a message


def preset(name: str) -> Params:
    """The complete parameters of a preset. Raises ParamsError for an unknown name."""
    return resolve({"preset": name})


def load(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read params.yaml, lay it over the preset it names, apply `section.key=value` overrides, check it all.

    Raises ParamsError listing every mistake at once with its key path.
    """
    try:
        with path.open("rb") as file:
            raw = read_yaml(file.read(MOST_BYTES + 1))
    except FileNotFoundError:
        raise ParamsError(
            f"There is no parameter file {path}.", "Write one: musicldm params show --preset tiny > params.yaml"
        ) from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ParamsError(f"{path} cannot be read as YAML: {error}.", "Correct it, and run again.") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must hold sections (key: value), not a {type(raw).__name__}.")
    return resolve(raw, overrides, origin=str(path))


def resolve(raw: dict[str, Any], overrides: Iterable[str] = (), origin: str = "params") -> Params:
    """Preset, then `raw`, then overrides; validated whole. Raises ParamsError, which tells the mistakes of `origin`
    from those that the overrides bring in."""
    typed = list(overrides)
    params, problems = _check(reduce(_merge, map(_parse_override, typed), raw))
    if not problems:
        return params
    own = _check(raw)[1] if typed else problems
    places = {
        origin: [problem for problem in problems if problem in own],
        " ".join(f"-S {_cut(override)}" for override in typed): [problem for problem in problems if problem not in own],
    }
    message = "\n".join(_mistakes(place, found) for place, found in places.items() if found)
    raise ParamsError(message, "Correct these keys and run again.")


def _mistakes(place: str, problems: list[Problem]) -> str:
    lines = [f"  {_cut(key)}: {what}" for key, what in problems[:MOST_TOLD]]
    more = len(problems) - len(lines)
    return "\n".join([f"{place} has {len(problems)} mistake(s):", *lines, *([f"  and {more} more"] if more else [])])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def said_of_sampling(here: Params, overrides: Iterable[str] = ()) -> set[str]:
    """The keys of SAMPLING that `here` changes against its preset, or that overrides name; null says nothing."""
    usual = preset(here.preset).generate
    typed = {key for override in overrides for key in dict(_parse_override(override).get("generate") or {})}
    said = {key for key in SAMPLING if getattr(here.generate, key) not in (None, getattr(usual, key))}
    return said | (typed & set(SAMPLING))


def sampling(model: Params, here: Params, said: set[str]) -> Generate:
    """How to sample with a model: as its own parameters say but for the keys `said` here, where the run is."""
    own = {key: getattr(model.generate, key) for key in SAMPLING if key not in said}
    return here.generate.model_copy(update=own)


def to_yaml(params: Params) -> str:
    """A complete params.yaml with a line of explanation above each section; `resolve` reads it back unchanged."""
    blocks = []
    for name, value in params.model_dump(mode="json").items():
        section = getattr(params, name)
        about = (type(section).__doc__ or "").splitlines()[0] if isinstance(section, Section) else ""
        text = write_yaml({name: value})
        blocks.append(f"# {about}\n{text}" if about else text)
    return "\n".join(blocks)


def _parse_override(override: str) -> dict[str, Any]:
    """`vae.train.steps=10` as {"vae": {"train": {"steps": 10}}}. Raises ParamsError."""
    key, equals, value = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > MOST_LEVELS:
        raise ParamsError(f"-S {_cut(override)} is not section.key=value.", "E.g.: -S vae.train.steps=2000")
    try:
        key.encode()  # what was typed may be no text
        found = read_yaml(value)
    except ValueError as error:
        raise ParamsError(f"-S {_cut(override)}: the value cannot be read as YAML: {error}.") from error
    return reduce(lambda inner, part: {part: inner}, reversed(parts), found)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = {key: _merge(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def _check(data: dict[str, Any]) -> tuple[Params, list[Problem]]:
    """Params and the mistakes found; where there are any, the wrong keys are left at their defaults so that
    the checks between keys can still be made on the rest."""
    name = data.get("preset", "paper")
    if not isinstance(name, str) or name not in PRESETS:
        return Params(), [("preset", f"{_cut(repr(name))} is none of {', '.join(PRESETS)}")]
    data = _merge(_merge(_defaults(), PRESETS[name]), data)
    problems: list[Problem] = []
    try:
        params = Params.model_validate_json(json.dumps(data))
    except ValidationError as error:
        wrong, usual = error.errors(include_url=False), _defaults()
        problems = [(_key_path(e["loc"]), _plain(e)) for e in wrong]
        for one in wrong:
            _restore(data, usual, one["loc"])
        params = Params.model_validate_json(json.dumps(data))
    return params, problems + impossible(params)


def _defaults() -> dict[str, Any]:
    return Params().model_dump(mode="json")


def _restore(data: Any, default: Any, location: tuple[int | str, ...]) -> None:
    for part in location:
        if not isinstance(part, str) or not isinstance(data, dict):
            return
        if part not in default:
            data.pop(part, None)
            return
        if not isinstance(default[part], dict) or not isinstance(data.get(part), dict):
            data[part] = default[part]
            return
        data, default = data[part], default[part]


def _key_path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _plain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (is {_cut(repr(error['input']))})"
