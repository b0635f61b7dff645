"""Tables 1 and 2 over several runs: means over seeds, significance between variants, and the paper's rows beside.

A run is a folder with quality/, relevance/ and novelty/ as the evaluations leave them; its name is
`<variant>-<seed>`, where a name that does not end in a number is a variant of one run.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from stages.errors import DataError
from stages.evaluate.intervals import holm
from stages.evaluate.report import PAPER_QUALITY, PAPER_SIMILARITY, read_rows
from stages.evaluate.run import METRICS
from stages.evaluate.wording import DOWN, UP, legend, plus_minus, sample, shown, title
from stages.generate.plots import violin_png
from stages.store import atomic_folder, read_json
from stages.tabular import csv_text

COLUMNS = {
    "table1": tuple(("quality", key) for key in ("fd", "kid", "is_softmax", "kl_softmax", "kl_sigmoid")),
    "table2": (
        ("relevance", "text_audio_similarity"),
        *(("novelty", key) for key in ("sim_aa@0.9", "sim_aa@0.95", "sim_mel@0.9")),
    ),
}
TEST_COLUMNS = ("measure", "first", "second", "n", "mean_difference", "p", "p_holm")
PAPER = {"table1": PAPER_QUALITY, "table2": PAPER_SIMILARITY}
THEIRS = "the paper's own figures: other data, other networks, another test set; not comparable with ours"
PAIRED = (("relevance/prompts.csv", "text-audio similarity"), ("novelty/nearest.csv", "similarity to training music"))
LEAST_PAIRS = 6  # under which no outcome of the test has p < 0.05


@dataclass(frozen=True)
class Run:
    """One evaluated run."""

    variant: str
    seed: str
    folder: Path
    metrics: dict[str, dict[str, Any]]


Row = list[str]


def read_runs(folder: Path) -> list[Run]:
    """The runs below a folder, in name order. Raises DataError when there is none."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        metrics = {
            kind: read_json(path / kind / METRICS, f"Measure again: musicldm eval {kind}")
            for kind in ("quality", "relevance", "novelty")
            if (path / kind / METRICS).exists()
        }
        if metrics:
            match = re.fullmatch(r"(.+)-(\d+)", path.name)
            found.append(Run(match[1] if match else path.name, match[2] if match else "", path, metrics))
    if not found:
        raise DataError(
            f"{folder} holds no evaluated runs.",
            "Give a folder of folders, each with quality/, relevance/, novelty/ of `musicldm eval`.",
        )
    return found


def write_tables(folder: Path, out: Path) -> dict[str, Any]:
    """Write table1 and table2 as .md, .csv and .tex, significance.csv, and violins.png; returns their figures."""
    runs = read_runs(folder)
    variants: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        variants[run.variant].append(run)
    warnings = _same_conditions(runs)
    tests = significance(variants)
    with atomic_folder(out) as temporary:
        for name, columns in COLUMNS.items():
            header = ["system", "seeds", "n", *(title(key) for _, key in columns)]
            rows = [_row(variant, group, columns) for variant, group in variants.items()]
            reference = _references(runs) if name == "table2" else []
            notes = [*legend(key for _, key in columns), _conditions(runs[0]), *warnings]
            (temporary / f"{name}.md").write_text(_markdown(header, rows + reference, PAPER[name], notes), "utf-8")
            (temporary / f"{name}.csv").write_text(_csv(header, rows + reference, PAPER[name]), "utf-8")
            (temporary / f"{name}.tex").write_text(_latex(header, rows + reference, PAPER[name]), "utf-8")
        (temporary / "significance.csv").write_text(csv_text(TEST_COLUMNS, tests), "utf-8")
        for number, (file, label) in enumerate(PAIRED):
            sets = {v: [x for run in group for x in scores(run, file).values()] for v, group in variants.items()}
            sets = {name: values for name, values in sets.items() if values}
            if sets:
                (temporary / f"figure3-{'text' if number == 0 else 'audio'}.png").write_bytes(violin_png(sets, label))
    return {"runs": len(runs), "variants": list(variants), "significance": tests, "warnings": warnings}


def scores(run: Run, file: str) -> dict[str, float]:
    """Similarity of each generated clip, by clip; of several windows the mean for text, the largest for novelty."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for row in read_rows(run.folder / file):
        if row["set"] == "generated":
            grouped[row["id"]].append(float(row["similarity"]))
    return {name: max(values) if "nearest" in file else float(np.mean(values)) for name, values in grouped.items()}


def significance(variants: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Every pair of variants, prompt by prompt (means over seeds): Wilcoxon's signed-rank test, two-sided, with
    Holm's correction over the pairs of one measure. Pairs of fewer than LEAST_PAIRS common prompts are left out."""
    found = []
    for file, label in PAIRED:
        means = {name: _mean_scores(group, file) for name, group in variants.items()}
        tests = [row for a, b in combinations(means, 2) if (row := _test(label, a, b, means[a], means[b]))]
        for row, corrected in zip(tests, holm([row["p"] for row in tests]), strict=True):
            row["p_holm"] = corrected
        found += tests
    return found


def _mean_scores(runs: list[Run], file: str) -> dict[str, float]:
    found = [scores(run, file) for run in runs]
    common = set.intersection(*(set(one) for one in found)) if found else set()
    return {name: float(np.mean([one[name] for one in found])) for name in sorted(common)}


def _test(label: str, a: str, b: str, first: dict[str, float], second: dict[str, float]) -> dict[str, Any] | None:
    common = sorted(first.keys() & second.keys())
    if len(common) < LEAST_PAIRS:
        return None
    difference = np.array([second[name] - first[name] for name in common])
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return {"measure": label, "first": a, "second": b, "n": len(common), "mean_difference": float(difference.mean()),
            "p": p}  # fmt: skip


def _row(variant: str, runs: list[Run], columns: tuple[tuple[str, str], ...]) -> Row:
    cells, counts = [], set()
    for kind, key in columns:
        found = [_find(run.metrics.get(kind, {}), key) for run in runs]
        values = [figure["value"] for figure in found if figure]
        counts |= {sample(figure) for figure in found if figure}
        cells.append(_cell(values, found))
    return [variant, str(len(runs)), " / ".join(sorted(counts)), *cells]


def _find(metrics: dict[str, Any], key: str) -> dict[str, Any] | None:
    return metrics.get(key) or (metrics.get("generated") or {}).get(key)


def _cell(values: list[float], figures: list[dict[str, Any] | None]) -> str:
    """Mean and standard deviation over seeds; of a single run the 95% interval of its own evaluation."""
    if not values:
        return ""
    if len(values) > 1:
        return plus_minus(float(np.mean(values)), float(np.std(values, ddof=1)))
    value, low, high = shown(next(figure for figure in figures if figure))
    return f"{value} [{low}, {high}]"


def _references(runs: list[Run]) -> list[Row]:
    keys = ("test_set_reference", "retrieval_max_reference")
    metrics = next((run.metrics["relevance"] for run in runs if "relevance" in run.metrics), {})
    rows = [[title(key), "", sample(metrics[key]), _cell([1.0], [metrics[key]])] for key in keys if metrics.get(key)]
    width = 3 + len(COLUMNS["table2"])
    return [row + [""] * (width - len(row)) for row in rows]


def _conditions(run: Run) -> str:
    return "; ".join(f"{kind}: {found['backbone']}, {found['preprocessing']}" for kind, found in run.metrics.items())


def _same_conditions(runs: list[Run]) -> list[str]:
    warnings = []
    for kind in ("quality", "relevance", "novelty"):
        seen = {(found["backbone"], found["preprocessing"]) for run in runs if (found := run.metrics.get(kind))}
        if len(seen) > 1:
            warnings.append(f"The runs' {kind} was measured with {len(seen)} networks or preprocessings; "
                            "these figures cannot be compared.")  # fmt: skip
    return warnings


def _theirs(paper: tuple[tuple[Any, ...], ...]) -> tuple[list[str], list[Row]]:
    return [str(cell) for cell in paper[0]], [[f"{row[0]} (paper)", *map(str, row[1:])] for row in paper[1:]]


def _markdown(header: Row, rows: list[Row], paper: tuple[tuple[Any, ...], ...], notes: list[str]) -> str:
    def lines(head: Row, body: list[Row]) -> list[str]:
        return ["| " + " | ".join(row) + " |" for row in (head, ["-"] * len(head), *body)]

    head, body = _theirs(paper)
    parts = ["Ours.", "", *lines(header, rows), "", *(f"- {note}" for note in notes), "", f"Theirs: {THEIRS}.", ""]
    return "\n".join([*parts, *lines(head, body), ""])


def _csv(header: Row, rows: list[Row], paper: tuple[tuple[Any, ...], ...]) -> str:
    head, body = _theirs(paper)
    names = ["source", *(name.rstrip(f" {UP}{DOWN}") for name in header)]
    ours, theirs = ([[source, *row] for row in part] for source, part in (("ours", rows), ("paper", body)))
    return csv_text(names, [*ours, [f"paper ({THEIRS})", *head], *theirs])


def _latex(header: Row, rows: list[Row], paper: tuple[tuple[Any, ...], ...]) -> str:
    def tabular(head: Row, body: list[Row]) -> list[str]:
        cells = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in (head, *body)]
        return [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\hline", cells[0], r"\hline", *cells[1:],
                r"\hline", r"\end{tabular}"]  # fmt: skip

    head, body = _theirs(paper)
    return "\n".join(["% ours", *tabular(header, rows), "", f"% {THEIRS}", *tabular(head, body), ""])


def _tex(cell: str) -> str:
    escaped = re.sub(r"([_%&#])", r"\\\1", cell)
    for sign, command in (("±", "pm"), (UP, "uparrow"), (DOWN, "downarrow")):
        escaped = escaped.replace(sign, rf"$\{command}$")
    return escaped
