"""YAML 1.2 for params.yaml, with bounds on size and depth: a few bytes of YAML can expand to gigabytes."""

import re
from typing import Any

import yaml

MOST_BYTES = 2**17  # a params.yaml that states every key has 7 KB
MOST_VALUES = 5000  # those that aliases stand for included; it has 400
MOST_LEVELS = 20  # of mappings and lists in each other; it has 3

_WORD = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"

# The scalars of YAML 1.2's core schema, as DVC reads them: by YAML 1.1 1e-4 would be text, `on` true, 010 eight.
# What is no plain number stays text, integers beyond 18 digits, too; no parameter takes that for a number.
_SCALARS = {
    "merge": (r"<<", ["<"]),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]{0,17})", list("-+0123456789")),
    "float": (r"(?=.*[.eE])[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
}


def read_yaml(text: str | bytes) -> Any:
    """One document of plain values; the keys of every mapping are words, each there once. Bytes are UTF-8 or UTF-16.

    Raises ValueError with the reason and its place, also for what is longer, deeper or more than the bounds above.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES // 1024} KB")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        what = ", ".join(filter(None, (error.context, error.problem)))
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(what + place) from error
    except yaml.YAMLError as error:  # bytes that are no text, control characters
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """Composes nodes within the bounds, so that no more than these is ever constructed."""

    def __init__(self, text: str | bytes) -> None:
        super().__init__(text)
        self.values = self.levels = 0
        self.sizes: dict[yaml.Node, int] = {}  # of finished nodes, in values

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self.values
        if getattr(event, "tag", None) is not None:
            raise _mistake(f"the tag {event.tag} is not read here", event)
        self.values += 1
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise _mistake(f"it is deeper than {MOST_LEVELS} levels", event)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if node not in self.sizes:
                raise _mistake(f"the alias *{event.anchor} holds itself", event)
            self.values += self.sizes[node]
        elif node is not None:
            self.sizes[node] = self.values - before
        if self.values > MOST_VALUES:
            raise _mistake(f"it holds more than {MOST_VALUES} values", event)
        self.levels -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (_WORD, _MERGE):
                raise _mistake("a key is not a word", key)
            if key.value in known:
                raise _mistake(f"the key {key.value[:40]} occurs twice", key)
            known.add(key.value)
        return node


def _mistake(what: str, where: Any) -> yaml.MarkedYAMLError:
    """`where` is an event or a node."""
    return yaml.MarkedYAMLError(problem=what, problem_mark=where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line and mappings one key a line, and text in quotes where we would read a number."""


_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def write_yaml(data: dict[str, Any]) -> str:
    """What `read_yaml` reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110)
