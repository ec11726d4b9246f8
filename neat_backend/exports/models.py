"""The trained classifier, taken out of a project: a folder that works without this package.

model.safetensors  the weights, by the names of torchvision's ResNet-18
model.pt2          the whole of it as torch.export keeps it: pixels in, probabilities out; or as
model.onnx         the same for ONNX Runtime and whatever else reads ONNX
model.json         classes, preprocessing, which round, how good
predict.py         loads model.pt2 or model.onnx and classifies image files
README.md          how to use them
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neat_backend import __version__
from neat_backend.errors import BadRequest, UnknownProject
from neat_backend.exports.targets import new_folder, refuse_existing
from neat_backend.records import Project, Round
from neat_backend.settings import Settings
from neat_backend.store import projects, rounds
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.objects import bring

PREPROCESSING = (
    "turn upright by EXIF; RGB, transparent parts white",
    "average blocks of f × f pixels (Pillow's reduce), f = shorter side // (2 × image_size), where that is above 1",
    "cut out the central square, of the shorter side",
    "resize to image_size × image_size, bicubic (Pillow)",
    "divide by 255, subtract mean, divide by std ({model} does this step and the softmax itself)",
)


@dataclass(frozen=True)
class Kind:
    """What the model is kept as: the lines of the example that follow from it, and its part of the README."""

    package: str
    load: str
    classify: str
    takes: str
    written: str


KINDS = {
    "pt2": Kind(
        "torch",
        'torch.export.load(here / "model.pt2").module()',
        "model(torch.from_numpy(np.array(image))[None])[0].tolist()",
        "takes uint8 {images} and gives float32 {probabilities}, in the order of `classes` in `model.json`",
        "by PyTorch {torch}",
    ),
    "onnx": Kind(
        "onnxruntime",
        'onnxruntime.InferenceSession(here / "model.onnx")',
        'model.run(["probabilities"], {"images": np.array(image)[None]})[0][0].tolist()',
        "takes `images`, uint8 {images}, and gives `probabilities`, float32 {probabilities}, in the order of "
        "`classes`\nin `model.json` and in its own metadata",
        "by PyTorch {torch}, for ONNX's opset {opset}",
    ),
}

PREDICT = '''"""python predict.py IMAGE...: a line of JSON for each image, its probability for each class."""
import json, sys
from pathlib import Path
import numpy as np, {package}
from PIL import Image, ImageOps

here = Path(__file__).parent
about = json.loads((here / "model.json").read_text(encoding="utf-8"))
model = {load}
for name in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(name)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.reduce(max(1, min(image.size) // (2 * about["image_size"])))
    w, h, s, size = *image.size, min(image.size), [about["image_size"]] * 2
    image = image.crop(((w - s) // 2, (h - s) // 2, (w + s) // 2, (h + s) // 2)).resize(size, Image.BICUBIC)
    probabilities = {classify}
    print(json.dumps(dict(zip(about["classes"], probabilities))))
'''

WEIGHTS = """import json, torch
from safetensors.torch import load_file
from torchvision.models import resnet18

about = json.load(open("model.json", encoding="utf-8"))
network = resnet18(num_classes=len(about["classes"]))
{stem}network.load_state_dict(load_file("model.safetensors"))
network.eval()
images = torch.zeros(1, 3, about["image_size"], about["image_size"])  # RGB, in [0, 1]
mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
probabilities = network((images - mean) / std).softmax(dim=1)
"""
STEM = """network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)  # as is usual for small images
network.maxpool = torch.nn.Identity()
"""

README = """# {title}: classifier of round {round}

A ResNet-18 for {n} classes and images of {side} × {side} pixels, trained from scratch on {trained} labelled
images.{accuracy}
It knows these classes alone: an image of none of them gets one of them all the same.

`pip install numpy pillow {package}`, then `python predict.py IMAGE...`, which is this:

```python
{predict}```

`{model}` {takes}.
It was written {written}, and computes in float32. The weights alone load in any version of PyTorch,
for further training too (`pip install safetensors torchvision`):

```python
{weights}```
"""


def export_model(
    settings: Settings,
    database: Database,
    project: int,
    target: Path,
    overwrite: bool = False,
    *,
    format: str = "pt2",
) -> dict[str, Any]:
    """Write the classifier of the last round that is done into the folder `target`, whole or not at all.

    format: pt2, which PyTorch loads, or onnx.
    What model.json says. The same classifier gives the same bytes, with the same PyTorch (and onnxscript).
    Raises UnknownProject, and BadRequest when there is no classifier yet, for another format or one whose package is
    missing, and for a target that can't be written.
    """
    if format not in KINDS:
        raise BadRequest(f"there is no format {format!r} for models; one of {', '.join(KINDS)}", "format")
    if format == "onnx":
        _needed_for_onnx()
    refuse_existing(target, overwrite)
    found, done, weights = _trained(settings, database, project)
    from neat_backend.core import portable  # brings PyTorch: not for those who only ask for the command's help
    from neat_backend.core.classifier import MEAN, STD, Classifier
    from neat_backend.core.networks import ORDINARY_STEM_FROM

    with new_folder(target, overwrite) as partial:
        built = partial / "built"
        _write(built / "model.safetensors", weights)
        classifier = Classifier.load(built / "model.safetensors", "cpu")
        model = portable.onnx(classifier) if format == "onnx" else portable.pt2(classifier)
        _write(built / f"model.{format}", model)
        about = {
            **_about(found, done, f"model.{format}"),
            "image_size": classifier.side,
            "mean": [round(value, 6) for value in MEAN.flatten().tolist()],
            "std": [round(value, 6) for value in STD.flatten().tolist()],
            "torch": portable.VERSION,
        }
        if format == "onnx":
            about["opset"] = portable.OPSET
        _write(built / "model.json", (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
        predict = _predict(KINDS[format])
        _write(built / "predict.py", predict.encode())
        stem = STEM if classifier.side < ORDINARY_STEM_FROM else ""
        _write(built / "README.md", _readme(about, KINDS[format], predict, WEIGHTS.format(stem=stem)).encode())
    return about


def _needed_for_onnx() -> None:
    """Raises BadRequest where what PyTorch writes ONNX with isn't installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadRequest(
            f"ONNX needs the package {error.name}, which is not installed here: `pip install onnx onnxscript`, or "
            "export pt2",
            "format",
        ) from None


def _trained(settings: Settings, database: Database, project: int) -> tuple[Project, Round, bytes]:
    """The project, its last round that is done, and that one's weights."""
    folder = ProjectArrays(settings.data_dir, project).root / "models"
    bring(settings.arrays_url, settings.data_dir, database, project, "models")
    for _ in range(3):  # a round that ends just now takes the file of the one before along
        with database.read() as conn:
            found = projects.get(conn, project) if 0 < project < 2**63 else None
            done = None if found is None else rounds.latest(conn, project)
        if found is None:
            raise UnknownProject(f"project {project} is not connected to this backend", "project")
        if done is None:
            break
        with suppress(FileNotFoundError):
            return found, done, (folder / f"{done.number:06d}.safetensors").read_bytes()
    raise BadRequest(
        f"project {project} has no trained classifier yet: label images of at least two classes, then "
        f"`neat-backend train {project}`",
        "project",
    )


def _about(project: Project, done: Round, model: str) -> dict[str, Any]:
    return {
        "project": project.id,
        "title": project.title,
        "round": done.number,
        "finished_at": done.finished_at.isoformat() if done.finished_at else None,
        "classes": list(done.classes),
        "model": model,
        "preprocessing": [step.format(model=model) for step in PREPROCESSING],
        "network": "torchvision resnet18",
        "labelled": done.known,
        "held_out": done.held_out,
        "held_out_correct": done.held_out_correct,
        "held_out_accuracy": done.held_out_accuracy,
        "neat_backend": __version__,
    }


def _predict(kind: Kind) -> str:
    return PREDICT.format(package=kind.package, load=kind.load, classify=kind.classify)


def _readme(about: Mapping[str, Any], kind: Kind, predict: str, weights: str) -> str:
    n, side = len(about["classes"]), about["image_size"]
    held_out, right = about["held_out"], about["held_out_correct"]
    return README.format(
        title=about["title"] or f"Project {about['project']}",
        round=about["round"],
        n=n,
        side=side,
        trained=about["labelled"] - held_out,
        accuracy=f" Of {held_out} that were kept out of training it gets {right} right." if held_out else "",
        predict=predict,
        weights=weights,
        package=kind.package,
        model=about["model"],
        takes=kind.takes.format(images=f"[n, {side}, {side}, 3]", probabilities=f"[n, {n}]"),
        written=kind.written.format_map(about),
    )


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
