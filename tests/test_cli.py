"""The command line as a person or a script meets it: help, exit codes, output modes, completion."""

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from musicldm_cli import app
from stages import errors

ROOT = Path(__file__).parent.parent


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "musicldm_cli", *arguments], cwd=cwd, capture_output=True, text=True)


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """The same entry point without a new process."""
    monkeypatch.setattr(sys, "argv", ["musicldm", *arguments])
    with pytest.raises(SystemExit) as caught:
        app.main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_help_names_every_command_and_imports_nothing_heavy():
    probe = (
        "import sys; sys.argv = ['musicldm', '--help']\n"
        "from musicldm_cli.app import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'pydantic', 'transformers', 'librosa'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    for name in ("data", "prep", "train", "generate", "eval", "model", "params", "doctor"):
        assert name in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_explains_itself(monkeypatch, capsys):
    """Each leaf of the tree has a help text, and each of its options too."""
    leaves = list(_leaves(app.app))
    assert len(leaves) >= 20
    for path, command in leaves:
        assert command.help and len(command.help) > 15, path
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{' '.join(path)}: {parameter.name}"


def _leaves(typer_app):
    import typer

    def walk(command, path):
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*path, name))
        if not hasattr(command, "commands"):
            yield path, command

    return walk(typer.main.get_command(typer_app), ())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nonsense",), 2, "No such command"),
        (("prep", "nonsense"), 2, "musicldm prep --help"),
        (("generate", "--steps", "few"), 2, "--steps"),
        (("--params", "none.yaml", "params", "show"), 3, "no parameter file"),
        (("params", "show", "-S", "mel.hop_length=7"), 3, "mel.hop_length"),
        (("model", "info", "no-such-folder"), 5, "not a model folder"),
    ],
)
def test_mistakes_have_their_exit_code_and_one_sentence(monkeypatch, capsys, arguments, code, words):
    got, out, err = call(monkeypatch, capsys, *arguments)
    assert (got, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_the_reference_is_up_to_date(tmp_path):
    """docs/cli.md is what `make docs` writes from the commands themselves."""
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "utils docs" in line)
    words = shlex.split(line.replace("$(RUN)", ""))
    words[-1] = str(tmp_path / "cli.md")
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, cwd=ROOT)
    assert (tmp_path / "cli.md").read_text() == (ROOT / "docs" / "cli.md").read_text(), "run: make docs"


def test_every_error_has_an_exit_code():
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.MusicldmError)]
    assert len(kinds) == 9
    codes = {kind.__name__: app.exit_code(kind("x")) for kind in kinds if kind is not errors.MusicldmError}
    assert codes == {
        "UsageError": 2,
        "ParamsError": 3,
        "DataError": 4,
        "DiskFullError": 4,
        "ModelError": 5,
        "MissingDependencyError": 6,
        "GateError": 7,
        "Interrupted": 130,
    }


def test_json_is_one_object_on_stdout(monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "--json", "params", "show", "--preset", "paper")
    shown = json.loads(out)
    assert (code, err, shown["ok"], shown["params"]["preset"]) == (0, "", True, "paper")
    code, out, err = call(monkeypatch, capsys, "--json", "model", "info", "no-such-folder")
    failed = json.loads(out)
    assert (code, err, failed["ok"]) == (5, "", False)
    assert set(failed["error"]) == {"code", "message", "remedy"}
    code, out, _ = call(monkeypatch, capsys, "--json", "--quiet", "doctor")
    assert (code, json.loads(out)["error"]["message"]) == (2, "--json and --quiet exclude each other.")
    code, out, _ = call(monkeypatch, capsys, "--json", "nonsense")
    assert (code, json.loads(out)["error"]["code"]) == (2, 2)


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "params", "show", "--preset", "tiny"),
        ("params", "--json", "show", "--preset", "tiny"),
        ("params", "show", "--preset", "tiny", "--json"),
        ("params", "show", "--json", "--preset", "tiny"),
    ],
)
def test_global_options_are_taken_anywhere(monkeypatch, capsys, words):
    code, out, err = call(monkeypatch, capsys, *words)
    assert (code, err, json.loads(out)["params"]["preset"]) == (0, "", "tiny")


def test_global_options_behind_a_command_mean_what_they_mean_before_it(monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: small")
    code, out, _ = call(monkeypatch, capsys, "params", "show", "--params", str(tmp_path / "mine.yaml"))
    assert (code, "preset: small" in out) == (0, True)
    code, out, _ = call(monkeypatch, capsys, "--work", "no", "model", "list", "--work", str(tmp_path / "elsewhere"))
    assert (code, str(tmp_path / "elsewhere" / "models") in out) == (0, True)
    code, out, _ = call(monkeypatch, capsys, "--json", "params", "show", "-q")
    assert (code, json.loads(out)["error"]["message"]) == (2, "--json and --quiet exclude each other.")
    code, out, _ = call(monkeypatch, capsys, "model", "info", "nothing", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (5, 5)


def test_what_only_looks_like_a_global_option_is_none(monkeypatch, capsys, tmp_path):
    """The value of an option, and what stands behind --."""
    monkeypatch.chdir(tmp_path)
    for words in (("params", "show", "--preset", "--json"), ("params", "check", "--", "--json")):
        code, out, _ = call(monkeypatch, capsys, *words)
        assert (code, '"params": {' in out) == (3, False)
    _, _, err = call(monkeypatch, capsys, "params", "check", "--", "--json")
    assert "There is no parameter file --json." in err


def test_words_that_are_no_text_are_told_in_json(monkeypatch, capsys):
    for word, code in (("\udcff=1", 3), ("audio.peak=\udcff", 3)):
        got, out, _ = call(monkeypatch, capsys, "params", "show", "--json", "-S", word)
        assert (got, "\udcff" in json.loads(out)["error"]["message"]) == (code, True)
    got, out, _ = call(monkeypatch, capsys, "--json", "model", "info", "no-\udcff")
    assert (got, "no-\udcff" in json.loads(out)["error"]["message"]) == (5, True)


def test_every_command_shows_the_global_options(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for path, command in _leaves(app.app):
        names = {name for parameter in command.params for name in parameter.opts}
        assert {"--json", "--quiet", "-q", "--params", "--work"} <= names, path
        assert len(names) == sum(len(parameter.opts) for parameter in command.params), f"{path} has an option twice"
    _, out, _ = call(monkeypatch, capsys, "prep", "manifest", "--help")
    assert "Global options" in out


def test_the_commands_that_messages_name_exist():
    """Every `musicldm ...` in the strings of the packages: the command, and each option written with it."""
    commands = dict(_leaves(app.app))
    groups = {path[:length] for path in commands for length in range(1, len(path))}
    prose = {"again", "for", "from", "gives", "project", "training", "writes"}  # "Install musicldm again from ..."
    pattern = re.compile(r"musicldm (?:--params FILE )?([a-z][^`\n;,()]*)")
    checked = set()
    for text in {text for string in _strings() for text in pattern.findall(string)}:
        words = text.replace(".", " ").split()
        path = next((tuple(words[:count]) for count in (3, 2, 1) if tuple(words[:count]) in commands), None)
        if path is None:
            assert tuple(words) in groups or words[0] in prose, text
            continue
        known = {name for parameter in commands[path].params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if re.fullmatch(r"--?[a-zA-Z][a-z-]*", word)} <= known, text
        checked.add(path)
    assert len(checked) >= 29


def _strings():
    for package in ("stages", "musicldm_cli", "musicldm"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_params_show_makes_a_file_that_params_check_accepts(monkeypatch, capsys, tmp_path):
    _, text, _ = call(monkeypatch, capsys, "params", "show", "--preset", "released")
    file = tmp_path / "params.yaml"
    file.write_text(text)
    code, out, _ = call(monkeypatch, capsys, "params", "check", str(file))
    assert code == 0
    assert "released, latents 8 x 256 x 16" in out


def test_doctor_tells_versions_compute_and_disk():
    done = run("--json", "doctor")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    found = {finding["what"]: finding for finding in report["findings"]}
    expected = {"python", "torch", "torchaudio imports", "cpu bf16", "cpu AMX", "free disk", "model"}
    assert expected <= found.keys()
    assert any(name.startswith("cuda") for name in found)
    assert report["healthy"] is True
    for finding in report["findings"]:
        assert finding["state"] == "ok" or finding["remedy"]


def test_doctor_names_a_missing_package_and_exits_6(monkeypatch, capsys):
    import importlib.metadata

    from stages import doctor

    def without_h5py(name: str) -> str:
        if name == "h5py":
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    monkeypatch.setattr(doctor, "version", without_h5py)
    code, out, _ = call(monkeypatch, capsys, "doctor")
    assert code == 6
    assert "pip install 'h5py>=" in out


def test_an_unknown_error_keeps_its_traceback(monkeypatch):
    from musicldm_cli.session import Session

    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Session, "params", broken)
    monkeypatch.setattr(sys, "argv", ["musicldm", "params", "show"])
    with pytest.raises(ZeroDivisionError, match="ours"):
        app.main()


def test_completion_for_bash_is_printed():
    """What --install-completion writes; asked for by variable, since --show-completion looks for the calling shell."""
    command = [sys.executable, "-c", "from musicldm_cli.app import app; app(prog_name='musicldm')"]
    done = subprocess.run(
        command, env=os.environ | {"_MUSICLDM_COMPLETE": "source_bash"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
    assert "_MUSICLDM_COMPLETE" in done.stdout


def test_an_error_that_nobody_reads_any_more_is_no_traceback():
    """The reader of --json went away, as `head` does, before the error was told."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "musicldm_cli", "--json", "model", "info", "nothing"], stdout=write,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_command_line_leaves_signals_as_they_were(monkeypatch, capsys):
    """A child forked later would inherit a handler in Python's own time, which a waiting semaphore never gives."""
    before = signal.getsignal(signal.SIGTERM)
    assert call(monkeypatch, capsys, "--version")[0] == 0
    assert call(monkeypatch, capsys, "model", "info", "nothing")[0] != 0
    assert signal.getsignal(signal.SIGTERM) is before
