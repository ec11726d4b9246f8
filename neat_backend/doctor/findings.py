"""Findings of checks, and running checks in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neat_backend.errors import NeatError

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    state: str  # "ok", "warning", "failed" or "skipped"
    said: str
    remedy: str = ""  # one line, for "warning" and "failed"
    project: int | None = None  # None: it concerns the whole installation


class Complaint(Exception):
    """Raised by a check that found a problem, with its words and the remedy."""

    def __init__(self, said: str, remedy: str, state: str = FAILED) -> None:
        super().__init__(said)
        self.said, self.remedy, self.state = said, remedy, state


class Examination:
    """Runs checks in order; a check that depends on a failed one is skipped."""

    def __init__(self, on_finding: Callable[[Finding], None] = lambda finding: None) -> None:
        """on_finding: called with each finding as its check ends."""
        self.findings: list[Finding] = []
        self._on_finding = on_finding

    def check(
        self, name: str, do: Callable[[], str], remedy: str, needs: Sequence[str] = (), project: int | None = None
    ) -> bool:
        """Run `do`, which returns the words of a success or raises; returns whether dependent checks can run.

        remedy: for an error without a remedy of its own (a NeatError).
        """
        lacking = [need for need in needs if not self._passed(need, project)]
        if lacking:
            finding = Finding(name, SKIPPED, f"needs: {lacking[0]}", project=project)
        else:
            finding = _outcome(name, do, remedy, project)
        self.findings.append(finding)
        self._on_finding(finding)
        return finding.state in (OK, WARNING)

    def _passed(self, name: str, project: int | None) -> bool:
        return any(
            one.check == name and one.project in (None, project) and one.state in (OK, WARNING) for one in self.findings
        )


def _outcome(name: str, do: Callable[[], str], remedy: str, project: int | None) -> Finding:
    try:
        return Finding(name, OK, do(), project=project)
    except Complaint as complaint:
        return Finding(name, complaint.state, complaint.said, complaint.remedy, project)
    except NeatError as error:
        return Finding(name, FAILED, _line(error), remedy, project)
    except Exception as error:  # the diagnosis must continue
        return Finding(name, FAILED, f"{type(error).__name__}: {_line(error)}", remedy, project)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
