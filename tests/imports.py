"""Which modules of `stages` a command really imports, read from the source without running it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
