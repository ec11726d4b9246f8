"""Export of the last round's ResNet-18."""

from __future__ import annotations

from contextlib import suppress

from neat_backend.errors import BadRequest
from neat_backend.exports.model_texts import CENTRE_FIRST, Taken, Texts
from neat_backend.records import Project
from neat_backend.settings import Settings
from neat_backend.store import rounds
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.objects import fetch_once

PREPROCESSING = (
    "turn upright by EXIF; RGB, transparent parts white",
    "average blocks of f × f pixels (Pillow's reduce), f = shorter side // (2 × image_size), where that is above 1",
    "cut out the central square, of the shorter side",
    "resize to image_size × image_size, bicubic (Pillow)",
    "divide by 255, subtract mean, divide by std (the model does this step and the softmax itself)",
)
DESCRIPTION = """A ResNet-18 for {n} classes and images of {side} × {side} pixels, trained on {trained} labelled
images.{accuracy}
It knows these classes alone: an image of none of them gets one of them all the same."""
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


def resnet18(settings: Settings, database: Database, project: Project) -> Taken:
    """The classifier of the last finished round. Raises BadRequest when there is none."""
    from neat_backend.exports import portable
    from neat_backend.models.classifier import Classifier
    from neat_backend.models.networks import ORDINARY_STEM_FROM

    fetch_once(settings.arrays_url, settings.data_dir, database, project.id, "models")
    folder = ProjectArrays(settings.data_dir, project.id).root / "models"
    for _ in range(3):  # a round that ends meanwhile deletes the previous round's file
        with database.read() as conn:
            done = rounds.latest(conn, project.id)
        if done is None:
            break
        with suppress(FileNotFoundError):
            path = folder / f"{done.number:06d}.safetensors"
            classifier, weights = Classifier.load(path, "cpu"), path.read_bytes()
            held_out, right = done.held_out, done.held_out_correct
            description = DESCRIPTION.format(
                n=len(classifier.classes),
                side=classifier.side,
                trained=done.known - held_out,
                accuracy=f" Of {held_out} that were kept out of training it gets {right} right." if held_out else "",
            )
            stem = STEM if classifier.side < ORDINARY_STEM_FROM else ""
            name = f"classifier of round {done.number}"
            about = {
                "round": done.number,
                "finished_at": done.finished_at.isoformat() if done.finished_at else None,
                "network": "torchvision resnet18",
                "preprocessing": PREPROCESSING,
                "labelled": done.known,
                "held_out": held_out,
                "held_out_correct": right,
                "held_out_accuracy": done.held_out_accuracy,
            }
            texts = Texts(CENTRE_FIRST, name, description, "torchvision", WEIGHTS.format(stem=stem))
            return Taken(portable.of_classifier(classifier), weights, about, texts)
    raise BadRequest(
        f"project {project.id} has no trained ResNet-18 yet: label images of at least two classes, then "
        f"`neat-backend train {project.id}`; or take the linear classifier, --classifier linear",
        "classifier",
    )
