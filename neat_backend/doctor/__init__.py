"""Diagnosis: checks in the order in which things rest on each other, each with its remedy. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from neat_backend.doctor.findings import FAILED, OK, SKIPPED, WARNING, Examination, Finding
from neat_backend.doctor.installation import examine_installation
from neat_backend.doctor.project import examine_project

__all__ = ["FAILED", "OK", "SKIPPED", "WARNING", "Finding", "examine", "exit_code"]


def examine(
    env: Mapping[str, str], project: int | None = None, tell: Callable[[Finding], None] = lambda finding: None
) -> list[Finding]:
    """All findings, in order: of the installation, then of `project`, or of every connected one.

    tell: is given each as its check ends.
    """
    examination = Examination(tell)
    settings, database, connected = examine_installation(examination, env, project)
    for one in connected:
        examine_project(examination, settings, database, one)
    return examination.findings


def exit_code(findings: list[Finding]) -> int:
    """1 when a check failed, 3 when there are only warnings (2 is a mistake of use), 0 when all is well."""
    states = {finding.state for finding in findings}
    return 1 if FAILED in states else 3 if WARNING in states else 0
