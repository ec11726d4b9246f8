"""What a check says, and how checks follow each other."""

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
    """A check found something; raised by it with its words and the remedy."""

    def __init__(self, said: str, remedy: str, state: str = FAILED) -> None:
        super().__init__(said)
        self.said, self.remedy, self.state = said, remedy, state


class Examination:
    """Checks one after the other; one that rests on a failed one is skipped."""

    def __init__(self, tell: Callable[[Finding], None] = lambda finding: None) -> None:
        """tell: is given each finding as its check ends."""
        self.findings: list[Finding] = []
        self._tell = tell

    def check(
        self, name: str, do: Callable[[], str], remedy: str, needs: Sequence[str] = (), project: int | None = None
    ) -> bool:
        """Run `do`, which gives what to say when all is well, or raises; whether what rests on it can go on.

        remedy: for an error that `do` doesn't explain itself (a NeatError).
        """
        lacking = [need for need in needs if not self._passed(need, project)]
        if lacking:
            finding = Finding(name, SKIPPED, f"needs: {lacking[0]}", project=project)
        else:
            finding = _outcome(name, do, remedy, project)
        self.findings.append(finding)
        self._tell(finding)
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
    except Exception as error:  # a diagnosis that breaks off is none
        return Finding(name, FAILED, f"{type(error).__name__}: {_line(error)}", remedy, project)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
