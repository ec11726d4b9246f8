"""Exceptions, with messages for the person who can fix the problem.

    NeatError
    ├── SettingsError          a setting is missing or has a bad value; names the key
    ├── BadRequest             the sender's fault: answered with 4xx, names the field
    │   ├── BadLabelConfig     the label config can't be used; says what it needs
    │   ├── UnknownProject     nobody has connected this project yet
    │   └── UnknownTask        the project has no such task here
    ├── LabelStudioError       Label Studio failed at a request
    │   ├── LabelStudioUnavailable   down, slow, 5xx or 429: worth another try later
    │   ├── LabelStudioRefused       401/403: token or rights; another try won't help
    │   ├── NotFoundInLabelStudio    404: the project, task or file is gone
    │   └── PredictionsRejected      400 on an import of predictions
    ├── ImageError             one task's image can't be fetched or decoded; marks that task failed
    ├── EncoderError           the encoder can't be built: unknown name, weights missing
    ├── TrainingError          a training round failed; the last classifier stays in use
    ├── ClassifierDamaged      the file of a round's classifier can't be used; the next training writes another
    ├── ComputeError           Ray is missing, does not answer, or failed at what it was to compute
    │   └── ShardsLost         a part of the engine is lost: it must be rebuilt
    ├── LeaseLost              another worker owns the project now: stop at once, write nothing more
    ├── Disconnected           Label Studio has no connection to this backend for the project (any more)
    ├── Replaced               another project has the number of the stored one
    └── StoreError             database or data folder unusable
        └── LeaseLate          the lease may have expired: wait, nobody has to act

The class says who must act; the message says what happened and what to do about it. Messages
never carry secrets.
"""

from __future__ import annotations


class NeatError(Exception):
    """Base of all errors that this package raises on purpose."""


class SettingsError(NeatError):
    """A setting is missing or has a value that can't be used; the message names its key."""


class BadRequest(NeatError):
    """The request can't be understood. `field` is the JSON path of what is wrong ("" = the body)."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class BadLabelConfig(BadRequest):
    """The label config has no single-choice `Choices` on an `Image`, or isn't XML at all."""


class UnknownProject(BadRequest):
    """No such project is connected to this backend."""

    def __init__(self, project: int) -> None:
        super().__init__(f"project {project} is not connected to this backend", "project")


class UnknownTask(BadRequest):
    """The project has no such task, as far as this backend knows."""


class LabelStudioError(NeatError):
    """Label Studio failed at a request."""


class LabelStudioUnavailable(LabelStudioError):
    """No answer, a time-out, 429 or 5xx. `retry_after_seconds` is set when the server named one."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class LabelStudioRefused(LabelStudioError):
    """401 or 403: the API key is wrong, of a kind that is switched off, or lacks rights."""


class NotFoundInLabelStudio(LabelStudioError):
    """404: the requested object has been deleted, or the key's user can't see it."""


class PredictionsRejected(LabelStudioError):
    """400 on an import of predictions: a task of the batch no longer exists, or a value is refused."""


class ImageError(NeatError):
    """A task's image can't be fetched or decoded. `transient` says whether another try may help."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class EncoderError(NeatError):
    """The encoder can't be built; the message names the setting and the offline choice."""


class TrainingError(NeatError):
    """A training round failed, crashed or ran out of time."""


class ClassifierDamaged(NeatError):
    """The file of a round's classifier is damaged, or was not written by this package."""


class ComputeError(NeatError):
    """Ray can't be used, or failed at what it was to compute; or the process that encodes has died."""


class ShardsLost(ComputeError):
    """An actor with a part of the engine's rows has died."""


class LeaseLost(NeatError):
    """Another worker owns the project now: stop at once, write nothing more."""


class Disconnected(NeatError):
    """Label Studio lists no connection to this backend for the project, or has no such project any more."""


class Replaced(NeatError):
    """Label Studio's project of this number is another one than was read: the stored data is not about it."""


class StoreError(NeatError):
    """The database or the data folder can't be used."""


class LeaseLate(StoreError):
    """The lease could not be renewed in time: nothing is published until it is."""


class DataRefused(StoreError):
    """The database works but refuses this value: another try won't help."""
