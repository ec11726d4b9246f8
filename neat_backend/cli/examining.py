"""`doctor`: diagnosis with remedies."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json, ProjectIdOrAll

if TYPE_CHECKING:
    from neat_backend.doctor import Finding

commands = typer.Typer()
SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "bold red"), "skipped": ("–", "dim")}


@commands.command()
def doctor(
    project: ProjectIdOrAll = None,
    as_json: Json = False,
) -> None:
    """Check everything in order, and say what to do about what is wrong. Changes nothing.

    Makes Label Studio send one webhook, by an edit of the project that sets nothing. Exit code: 0 all is well,
    1 something failed, 3 there are only warnings.

    Examples: neat-backend doctor · neat-backend doctor 3 --json
    """
    from neat_backend import doctor as diagnosis

    if as_json:
        findings = diagnosis.examine(None, project)
        terminal.show([asdict(finding) for finding in findings], True)
    else:
        findings = diagnosis.examine(None, project, on_finding=_print)
        counts = {state: sum(one.state == state for one in findings) for state in SIGNS}
        terminal.out().print(", ".join(f"{count} {state}" for state, count in counts.items() if count), highlight=False)
    raise typer.Exit(diagnosis.exit_code(findings))


def _print(finding: Finding) -> None:
    from rich.text import Text

    sign, style = SIGNS[finding.state]
    of = "" if finding.project is None else f"project {finding.project}: "
    line = Text.assemble((sign, style), f" {of}{finding.check}: {finding.said}")
    if finding.remedy:
        line.append(f"\n    → {finding.remedy}")
    terminal.out().print(line, highlight=False, soft_wrap=True)
