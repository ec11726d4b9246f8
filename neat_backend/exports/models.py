"""The trained classifier, taken out of a project: a folder that works without this package.

model.safetensors  the weights, by the names of torchvision's ResNet-18
model.pt2          the whole of it as torch.export keeps it: pixels in, probabilities out
model.json         classes, preprocessing, which round, how good
predict.py         loads model.pt2 and classifies image files
README.md          how to use them
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
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

PREPROCESSING = (
    "turn upright by EXIF; RGB, transparent parts white",
    "cut out the central square, of the shorter side",
    "resize to image_size × image_size, bicubic (Pillow)",
    "divide by 255, subtract mean, divide by std (model.pt2 does this step and the softmax itself)",
)

PREDICT = '''"""python predict.py IMAGE...: a line of JSON for each image, its probability for each class."""
import json, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image, ImageOps

here = Path(__file__).parent
about = json.loads((here / "model.json").read_text(encoding="utf-8"))
model = torch.export.load(here / "model.pt2").module()
for name in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(name)).convert("RGB")
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    image = image.crop((left, top, left + square, top + square)).resize([about["image_size"]] * 2, Image.BICUBIC)
    probabilities = model(torch.from_numpy(np.array(image))[None])[0].tolist()
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

`pip install numpy pillow torch`, then `python predict.py IMAGE...`, which is this:

```python
{predict}```

`model.pt2` takes uint8 [n, {side}, {side}, 3] and gives float32 [n, {n}], in the order of `classes` in `model.json`. It
was written by PyTorch {torch}, and computes in float32. The weights alone load in any version, in further training too
(`pip install safetensors torchvision`):

```python
{weights}```
"""


def export_model(
    settings: Settings, database: Database, project: int, target: Path, overwrite: bool = False
) -> dict[str, Any]:
    """Write the classifier of the last round that is done into the folder `target`, whole or not at all.

    What model.json says. The same classifier gives the same bytes, with the same PyTorch.
    Raises UnknownProject, and BadRequest when there is no classifier yet and for a target that can't be written.
    """
    refuse_existing(target, overwrite)
    found, done, weights = _trained(settings, database, project)
    from neat_backend.core import portable  # brings PyTorch: not for those who only ask for the command's help
    from neat_backend.core.classifier import MEAN, STD, Classifier
    from neat_backend.core.networks import ORDINARY_STEM_FROM

    with new_folder(target, overwrite) as partial:
        built = partial / "built"
        _write(built / "model.safetensors", weights)
        classifier = Classifier.load(built / "model.safetensors", "cpu")
        about = _about(found, done, classifier.side, MEAN.flatten().tolist(), STD.flatten().tolist(), portable.VERSION)
        _write(built / "model.pt2", portable.portable(classifier))
        _write(built / "model.json", (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
        _write(built / "predict.py", PREDICT.encode())
        stem = STEM if classifier.side < ORDINARY_STEM_FROM else ""
        _write(built / "README.md", _readme(about, WEIGHTS.format(stem=stem)).encode())
    return about


def _trained(settings: Settings, database: Database, project: int) -> tuple[Project, Round, bytes]:
    """The project, its last round that is done, and that one's weights."""
    folder = ProjectArrays(settings.data_dir, project).root / "models"
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


def _about(project: Project, done: Round, side: int, mean: list[float], std: list[float], torch: str) -> dict[str, Any]:
    return {
        "project": project.id,
        "title": project.title,
        "round": done.number,
        "finished_at": done.finished_at.isoformat() if done.finished_at else None,
        "classes": list(done.classes),
        "image_size": side,
        "mean": [round(value, 6) for value in mean],
        "std": [round(value, 6) for value in std],
        "preprocessing": list(PREPROCESSING),
        "network": "torchvision resnet18",
        "labelled": done.known,
        "held_out": done.held_out,
        "held_out_correct": done.held_out_correct,
        "held_out_accuracy": done.held_out_accuracy,
        "neat_backend": __version__,
        "torch": torch,
    }


def _readme(about: Mapping[str, Any], weights: str) -> str:
    held_out, right = about["held_out"], about["held_out_correct"]
    return README.format(
        title=about["title"] or f"Project {about['project']}",
        round=about["round"],
        n=len(about["classes"]),
        side=about["image_size"],
        trained=about["labelled"] - held_out,
        accuracy=f" Of {held_out} that were kept out of training it gets {right} right." if held_out else "",
        predict=PREDICT,
        weights=weights,
        torch=about["torch"],
    )


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
