"""Diagnosis: checks in the order of their dependencies, each with its remedy. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from neat_backend.doctor.findings import FAILED, OK, SKIPPED, WARNING, Examination, Finding
from neat_backend.doctor.installation import examine_installation
from neat_backend.doctor.project import examine_project

__all__ = ["FAILED", "OK", "SKIPPED", "WARNING", "Finding", "examine", "exit_code"]


def examine(
    env: Mapping[str, str] | None = None,
    project: int | None = None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """All findings, in order: of the installation, then of `project`, or of every connected one.

    env: as `Settings.from_env`. on_finding: called with each finding as its check ends.
    """
    examination = Examination(on_finding)
    settings, database, connected = examine_installation(examination, env, project)
    for one in connected:
        examine_project(examination, settings, database, one)
    return examination.findings


def exit_code(findings: list[Finding]) -> int:
    """1 when a check failed, 3 when there are only warnings (2 is a mistake of use), 0 when all is well."""
    states = {finding.state for finding in findings}
    return 1 if FAILED in states else 3 if WARNING in states else 0
