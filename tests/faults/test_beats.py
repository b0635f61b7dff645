"""Annotations of beats in other conventions, files that are no music or no beats, and tracks too short to mix."""

import re


def scores(output: str) -> list[tuple[list[float], int]]:
    """(F, CMLt, AMLt, Cemgil; N) of each line on beats or downbeats."""
    rows = [line.split()[1:] for line in output.splitlines() if re.match(r"(down)?beats ", line)]
    return [([float(value) for value in row[:-1]], int(row[-1])) for row in rows]


def test_positions_of_other_conventions_are_read_or_not_scored(fault):
    done = fault("beat-annotations").cmd()
    assert done.returncode == 0, done.stderr
    perfect = ([1.0] * 4, 1)
    barbeat, jnan, rwc = ([perfect, perfect], [perfect, ([], 0)], [perfect, perfect])
    assert scores(done.stdout) == [*barbeat, *jnan, *rwc]


def test_litter_is_passed_over_and_bad_files_are_named_at_the_end(fault):
    done = fault("litter").cmd()
    assert re.findall(r"rc=(\d)", done.stdout) == ["0", "4"]
    assert [n for _, n in scores(done.stdout)] == [1, 1]
    assert done.stdout.split()[-1] == "good.beats"
    assert "1 of 2 files could not be tracked" in done.stderr
    assert "broken.wav" in done.stderr
    assert "._good" not in done.stderr
