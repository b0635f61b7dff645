"""`musicldm doctor`."""

from dataclasses import asdict

import typer

from musicldm_cli.session import session

MARKS = {"ok": "ok", "optional": "--", "missing": "!!"}


def doctor(context: typer.Context) -> None:
    """Tell what this machine has, and what is missing with the command that mends it (exit 6 then)."""
    from stages.doctor import examine
    from stages.weights.shipped import default_pipeline

    found = session(context)
    findings = examine(found.layout.work, default_pipeline(found.layout))
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]} {finding.what:20} {finding.found}")
        if finding.remedy:
            lines.append(f"{'':24}{finding.remedy}")
    missing = [finding for finding in findings if finding.state == "missing"]
    lines.append(f"{len(missing)} thing(s) missing." if missing else "Nothing needed is missing.")
    found.output.result("\n".join(lines), [], healthy=not missing, findings=[asdict(f) for f in findings])
    if missing:
        raise typer.Exit(6)
