"""Parameter files that explode; a user without a home."""

import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest


def test_params_that_explode_are_refused_at_once(fault):
    case = fault("params-bombs")
    (case.folder / "digits.yaml").write_text(f"preset: tiny\nvae: {{train: {{steps: {'9' * 5000}}}}}\n")
    (case.folder / "itself.yaml").write_text("preset: tiny\nvae: &a {train: *a}\n")
    (case.folder / "huge.yaml").write_text("#" * 10**7)
    done = case.type(f"ulimit -v 2000000; {(case.folder / 'cmd.sh').read_text()}")
    more = case.type("for f in digits itself huge; do timeout 20 musicldm params check $f.yaml; echo rc=$?; done")
    assert (done.stdout, more.stdout) == ("rc=3\n" * 3, "rc=3\n" * 3)
    sentences = re.findall(r"Error: (.+?)(?: \(line.*)?\.?\n", done.stderr + more.stderr)
    assert sentences == [
        "deep.yaml cannot be read as YAML: it is deeper than 20 levels",
        "intkey.yaml cannot be read as YAML: a key is not a word",
        "laughs.yaml cannot be read as YAML: it holds more than 5000 values",
        "digits.yaml has 1 mistake(s):",
        "itself.yaml cannot be read as YAML: the alias *a holds itself",
        "huge.yaml cannot be read as YAML: it is longer than 128 KB",
    ]
    assert "Traceback" not in done.stderr + more.stderr


# As an unknown user who may read but not write, wherever python and this checkout lie
NOBODY = (
    "setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
)
CAN_BE_NOBODY = shutil.which("setpriv") is not None and (
    subprocess.run([*NOBODY.split(), "true"], capture_output=True, check=False).returncode == 0
)


@pytest.mark.skipif(not CAN_BE_NOBODY, reason="only root can become another user")
def test_without_a_home_caches_lie_in_a_temporary_folder(fault):
    case = fault("no-home")
    case.folder.chmod(0o777)
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o777)
        nobody = f"{NOBODY} env -i PYTHONPATH=$PYTHONPATH TMPDIR={temporary} OMP_NUM_THREADS=1"
        typed = re.sub(r"setpriv.*? env -i", nobody, (case.folder / "cmd.sh").read_text())
        captions, generate = [line for line in typed.splitlines() if not line.startswith("#")]
        done = case.type(captions)
        assert (done.returncode, "There is no work/audio/manifest.csv" in done.stderr) == (4, True)
        probe = (
            "import stages.caches as c, librosa.core.notation, matplotlib as m; print(c.cache_home(), m.get_cachedir())"
        )
        done = case.type(f"{captions.partition(' musicldm')[0]} python -c '{probe}'")
        folder = Path(temporary) / "musicldm-12345"
        assert (done.stdout.split(), done.stderr) == ([str(folder), str(folder / "matplotlib")], "")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        done = case.type(generate)
        assert done.returncode == 0, done.stderr
    assert len(list(case.folder.glob("generated/*.wav"))) == 1
