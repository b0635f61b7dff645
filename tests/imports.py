"""Which modules of `stages` a command really imports, read from the source without running it.

`python -m tests.imports` writes them into the code deps of both dvc.yaml files.
"""

import ast
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
GRAPHS = (ROOT / "dvc.yaml", ROOT / "grid" / "dvc.yaml")
# Not dependencies: their values are tracked as params, or their formats carry a schema number. Counting them
# would train every network again for a new error message.
UNTRACKED = {"stages/params.py", "stages/errors.py", "stages/progress.py", "stages/layout.py", "stages/store.py",
             "stages/audio/torchaudio_cpu.py"}  # fmt: skip


def stage_commands(stage: dict[str, Any]) -> list[str]:
    """The command lines of a stage of dvc.yaml, `foreach` and `matrix` unrolled, `${...}` filled with real values."""
    body = stage.get("do", stage)
    each = stage.get("foreach", [])
    axes = stage.get("matrix") or {"": each if isinstance(each, list) else ["0"]}
    values = [axis if isinstance(axis, list) else ["0"] for axis in axes.values()] if each or "matrix" in stage else []
    lines = []
    for chosen in product(*values):
        line = body["cmd"]
        for key, value in zip(axes, chosen, strict=False):
            line = line.replace(f"${{item.{key}}}" if key else "${item}", str(value))
        lines.append(line.replace("${ldm.mixup}", "blm"))
    return lines


def stage_modules(stage: dict[str, Any]) -> list[str]:
    """The code deps that a stage should list, sorted."""
    lines = [line.removeprefix("musicldm ") for line in stage_commands(stage)]
    return sorted(set().union(*(command_modules(line) for line in lines)) - UNTRACKED)


def write_deps(graph: Path) -> None:
    """Replace the `- stages/...` lines of each stage of a dvc.yaml by what its commands import."""
    stages, name, written, lines = yaml.safe_load(graph.read_text())["stages"], "", set(), []
    for line in graph.read_text().splitlines():
        heading = re.fullmatch(r"  (\w+):", line)
        name = heading[1] if heading else name
        listed = re.fullmatch(r"( +- )stages/\S+\.py", line)
        if not listed:
            lines.append(line)
        elif name not in written:
            written.add(name)
            lines += [listed[1] + module for module in stage_modules(stages[name])]
    graph.write_text("\n".join(lines) + "\n")


def command_modules(command: str) -> set[str]:
    """Files below stages/ (relative paths) that `musicldm <command>` imports, however deep."""
    words = command.split()
    group, function = (words[0], words[0]) if words[0] == "generate" else (words[0], words[1])
    module = ROOT / "musicldm_cli" / "commands" / f"{'evaluate' if group == 'eval' else group}.py"
    tree = ast.parse(module.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    start = functions[_function_name(functions, function)]
    found: set[str] = set()
    for node in _reached(start, functions):
        found |= {file for name in _imports(node) for file in closure(name)}
    return found


def _function_name(functions: dict[str, ast.FunctionDef], command: str) -> str:
    for name, node in functions.items():
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and [getattr(a, "value", None) for a in decorator.args] == [command]:
                return name
    return command.replace("-", "_")


def _reached(start: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> list[ast.FunctionDef]:
    """The command's function and those of its own module that it names, and those they name."""
    reached, waiting = [], [start]
    while waiting:
        node = waiting.pop()
        if node in reached:
            continue
        reached.append(node)
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        own |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        waiting += [functions[name] for name in (names - own) & functions.keys()]
    return reached


def _imports(tree: ast.AST) -> set[str]:
    """Dotted names of `stages` modules imported anywhere below `tree`, except for type checking only."""
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name.split(".")[0] == "stages"}


def _file(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


@cache
def closure(name: str) -> frozenset[str]:
    """Files of module `name` and of all it imports. Packages' own __init__ files hold no code."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        file = _file(waiting.pop())
        if file is None or str(file.relative_to(ROOT)) in found:
            continue
        found.add(str(file.relative_to(ROOT)))
        waiting += _imports(ast.parse(file.read_text()))
    return frozenset(found)


if __name__ == "__main__":
    for path in GRAPHS:
        write_deps(path)
