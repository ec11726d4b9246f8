"""Connecting to a Ray cluster in bounded time, and translating its errors."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from neat_backend.errors import ComputeError

ANSWER_SECONDS = 5.0
DEFAULT_PORT = 6379
CLIENT_PORT = 10001


@dataclass(frozen=True)
class Cluster:
    """A connected Ray cluster. address: for other processes of this machine."""

    address: str

    @property
    def gpus(self) -> int:
        """GPUs of all machines that are up."""
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    @property
    def cpus(self) -> int:
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))


def connect(address: str = "") -> Cluster:
    """Connect this process to the Ray at `address` (host:port, ray://host:port or auto), or start one here for "".

    Raises ComputeError when Ray is not installed, and when nothing answers there within seconds.
    """
    if importlib.util.find_spec("ray") is None:
        raise ComputeError("NEAT_COMPUTE=ray: Ray is not installed; pip install 'ray[data]'")
    if address and address != "auto":
        _probe(address)
    # Ray reads these from the environment alone. Usage reports to its makers are off by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray has no common class of errors
            where = f"RAY_ADDRESS={address}" if address else "a Ray on this machine"
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ComputeError(
                f"NEAT_COMPUTE=ray: {where} can't be used: {first[:300]}; is the head node up, with the same versions "
                "of Ray and Python as here?"
            ) from error
    if address.startswith("ray://"):
        return Cluster(address)
    return Cluster(ray.get_runtime_context().gcs_address)


def _probe(address: str) -> None:
    """Raise ComputeError unless the address answers: Ray itself may search for a head node for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port or (CLIENT_PORT if parts.scheme == "ray" else DEFAULT_PORT)
        if not parts.hostname:
            raise ValueError("it names no host")
        with socket.create_connection((parts.hostname, port), ANSWER_SECONDS):
            return
    except ValueError as error:
        raise ComputeError(f"RAY_ADDRESS={address!r} must be host:port, ray://host:port or auto ({error})") from None
    except OSError as error:
        raise ComputeError(
            f"RAY_ADDRESS={address}: nothing answers there ({error.strerror or error}); start the head node with "
            "`ray start --head`, or leave RAY_ADDRESS empty for a Ray on this machine"
        ) from None


@contextmanager
def plain_errors(activity: str) -> Iterator[None]:
    """Translate Ray's errors to ComputeError; errors of this package raised in a task pass unchanged."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    from neat_backend.errors import NeatError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (NeatError, ValueError)):
            raise cause from error
        raise ComputeError(f"{activity} failed on Ray: {type(cause).__name__}: {cause}") from error
    except (RayError, ray.exceptions.RaySystemError, ConnectionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ComputeError(f"{activity} was cut short, Ray lost a machine or is gone: {first[:300]}") from error
