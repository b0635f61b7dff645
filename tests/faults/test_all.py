"""No folder of faults without a test."""

from tests.faults.conftest import FAULTS

FOLDERS = 25


def test_every_folder_is_run_by_a_test():
    folders = {path.name for path in FAULTS.iterdir() if (path / "cmd.sh").is_file()}
    source = "".join(path.read_text(encoding="utf-8") for path in FAULTS.glob("test_*.py"))
    assert len(folders) >= FOLDERS
    assert not sorted(name for name in folders if f'fault("{name}")' not in source)
