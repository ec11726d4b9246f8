"""Export of the classifier: a folder that works without this package.

model.safetensors  the weights
model.pt2          the model for torch.export: pixels in, probabilities out; or
model.onnx         the same for ONNX Runtime and other readers of ONNX
model.json         classes, preprocessing, which classifier and why, how good
predict.py         loads model.pt2 or model.onnx and classifies image files
README.md          how to use them
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from neat_backend import __version__
from neat_backend.errors import BadRequest
from neat_backend.exports import model_texts
from neat_backend.exports.linear_models import linear
from neat_backend.exports.model_texts import KINDS, OUTPUTS
from neat_backend.exports.resnet_models import resnet18
from neat_backend.exports.targets import new_folder, refuse_existing
from neat_backend.settings import Settings
from neat_backend.store import prequential, projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.objects import fetch_once
from neat_backend.store.prequential import Prequential

IN_FORCE = "in-force"
MAKERS = {"resnet18": resnet18, "linear": linear}
CLASSIFIERS = (IN_FORCE, *MAKERS)


def export_model(
    settings: Settings,
    database: Database,
    project: int,
    target: Path,
    overwrite: bool = False,
    *,
    format: str = "pt2",
    classifier: str = IN_FORCE,
) -> dict[str, Any]:
    """Write a classifier into the folder `target`, atomically; returns the content of model.json.

    format: pt2, which PyTorch loads, or onnx. classifier: resnet18 (of the last finished round), linear, or in-force.
    The same classifier with the same test results gives the same bytes, with the same PyTorch (and onnxscript).
    Raises UnknownProject; BadRequest when there is no such classifier yet, for another format or one whose package is
    missing, and for a target that can't be written; EncoderError where the encoder's weights are missing.
    """
    if format not in KINDS:
        raise BadRequest(f"there is no format {format!r} for models; one of {', '.join(KINDS)}", "format")
    if classifier not in CLASSIFIERS:
        raise BadRequest(f"there is no classifier {classifier!r}; one of {', '.join(CLASSIFIERS)}", "classifier")
    if format == "onnx":
        _needed_for_onnx()
    refuse_existing(target, overwrite)
    with database.read() as conn:
        found = projects.known(conn, project)
    fetch_once(settings.arrays_url, settings.data_dir, database, project, "snapshots")
    own = settings.for_project(found.extra_params)
    tested = prequential.read(ProjectArrays(settings.data_dir, project))
    in_force, why = _in_force(own, tested)
    chosen = in_force if classifier == IN_FORCE else classifier
    taken = MAKERS[chosen](own, database, found)
    from neat_backend.exports import portable

    right, of = tested.counts(chosen)
    about = {
        "project": project,
        "title": found.title,
        "classifier": chosen,
        "in_force": in_force,
        "why": why,
        "tested": of,
        "right": right,
        "classes": list(taken.model.classes),
        "outputs": {name: OUTPUTS[name] for name in taken.model.outputs},
        "model": f"model.{format}",
        "image_size": taken.model.side,
        "mean": list(taken.model.mean),
        "std": list(taken.model.std),
        **taken.about,
        "neat_backend": __version__,
        "torch": portable.VERSION,
    }
    if format == "onnx":
        about["opset"] = portable.OPSET
    kind = KINDS[format]
    program = model_texts.predict(kind, taken.texts, taken.model.outputs)
    files = {
        "model.json": json.dumps(about, indent=2, ensure_ascii=False) + "\n",
        "predict.py": program,
        "README.md": model_texts.readme(about, kind, taken.texts, program),
    }
    with new_folder(target, overwrite) as partial:
        built = partial / "built"
        _write(built / "model.safetensors", taken.weights)
        model = portable.onnx(taken.model) if format == "onnx" else portable.pt2(taken.model)
        _write(built / f"model.{format}", model)
        for name, text in files.items():
            _write(built / name, text.encode())
    return about


def _in_force(own: Settings, tested: Prequential) -> tuple[str, str]:
    """The classifier that the worker uses, and why; own: the project's settings."""
    setting = f"NEAT_CLASSIFIER={own.classifier}"
    if own.classifier != "auto":
        return own.classifier, tested.why if tested.in_force == own.classifier else setting
    if tested.in_force in MAKERS:
        return tested.in_force, tested.why
    return "linear", f"{setting}; too few labels to compare"


def _needed_for_onnx() -> None:
    """Raise BadRequest where the packages for writing ONNX aren't installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadRequest(
            f"ONNX needs the package {error.name}, which is not installed here: `pip install onnx onnxscript`, or "
            "export pt2",
            "format",
        ) from None


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
