"""Export of the linear classifier with its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neat_backend.errors import BadRequest
from neat_backend.exports.feature_table import Features
from neat_backend.exports.model_texts import EDGE_FIRST, SQUASHED, Taken, Texts
from neat_backend.exports.rows import Row, Wanted, rows
from neat_backend.labelstudio import label_config
from neat_backend.records import Project
from neat_backend.settings import Settings
from neat_backend.store import prequential, snapshots
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.objects import fetch_once

if TYPE_CHECKING:
    from neat_backend.ranking.linear_head import LinearHead

UPRIGHT = "turn upright by EXIF; RGB, transparent parts white"
EDGE_STEPS = (
    "of an image longer than 4 of its shorter sides keep the middle 4",
    "resize the shorter side to `resize`, the longer in proportion, rounded down: {resample} (Pillow, reducing_gap=2)",
    "cut out the central square of image_size",
)
SQUASHED_STEP = "resize to image_size × image_size, {resample} (Pillow, reducing_gap=2)"
LAST_STEP = "divide by 255, subtract mean, divide by std (the model does this step and all that follows itself)"
DESCRIPTION = """The network of {encoder}, its features brought to length 1, then a linear layer and softmax:
multinomial logistic regression on {known} labels of {n} classes{and_invalid}.
It takes images of {side} × {side} pixels. {knows}"""
KNOWS_THESE = "It knows these classes alone: an image of none of them gets one of them all the same."
KNOWS_NONE = "It also says how likely an image is of none of these classes."
WEIGHTS = """import json, torch
from safetensors.torch import load_file
{build}

about = json.load(open("model.json", encoding="utf-8"))
weights = load_file("model.safetensors")
prefix = "{prefix}"
network.load_state_dict({{name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}})
network.eval()
images = torch.zeros(1, 3, about["image_size"], about["image_size"])  # RGB, in [0, 1]
mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
pixels = (images - mean) / std
features = torch.nn.functional.normalize({features}, dim=1)
logits = features @ weights["head.weight"].T + weights["head.bias"]  # of the classes{and_none}
probabilities = logits[:, :len(about["classes"])].softmax(dim=1)
"""


def linear(settings: Settings, database: Database, project: Project) -> Taken:
    """The linear classifier of the present labels.

    Raises BadRequest when there is none, and where its features are of another encoder than the settings'; EncoderError
    where that one can't be built.
    """
    arrays = ProjectArrays(settings.data_dir, project.id)
    labelled = list(rows(settings, database, project.id, Wanted(include_invalid=True)))
    kind = snapshots.features_kind(arrays, snapshots.read_head(arrays))
    head = _fitted_by_the_worker(settings, arrays, labelled)
    if head is None:
        fetch_once(settings.arrays_url, settings.data_dir, database, project.id, "features")
        kind = snapshots.features_kind(arrays, snapshots.read_head(arrays))
        head = _fitted_now(settings, project, labelled) if kind else None
    if head is None:
        raise BadRequest(
            f"project {project.id} has no linear classifier yet: label images of at least two classes; or take the "
            "trained network, --classifier resnet18",
            "classifier",
        )
    from neat_backend.exports import portable
    from neat_backend.models.backends import key_of_network
    from neat_backend.models.encoders import build_encoder

    encoder = build_encoder(settings.encoder, settings.encoder_weights, "cpu")
    key = kind.partition("/")[2] or encoder.key
    if key_of_network(key) != encoder.key:  # the model has PyTorch's network, whichever back end made the features
        raise BadRequest(
            f"the linear classifier takes the features of {key}, and NEAT_ENCODER="
            f"{settings.encoder} is {encoder.key} here: export with the service's NEAT_ENCODER and "
            "NEAT_ENCODER_WEIGHTS, or with --classifier resnet18",
            "classifier",
        )
    model = portable.of_head(encoder, head)
    cut, recipe = encoder.preprocessing, portable.recipe(settings.encoder, encoder)
    resample = "bicubic" if cut.bicubic else "bilinear"
    invalid = sum(row.invalid for row in labelled)
    about = {
        "network": f"{settings.encoder}, features of length 1, linear layer",
        "encoder": key,
        "resize": cut.side if cut.squash else cut.resize,
        "preprocessing": [
            UPRIGHT,
            *(step.format(resample=resample) for step in ((SQUASHED_STEP,) if cut.squash else EDGE_STEPS)),
            LAST_STEP,
        ],
        "labelled": len(labelled) - invalid,
        "invalid": invalid,
        "classes_without_labels": [name for name in head.classes if name not in model.classes],
    }
    texts = Texts(
        (SQUASHED if cut.squash else EDGE_FIRST).format(resample=resample.upper()),
        "linear classifier",
        DESCRIPTION.format(
            encoder=settings.encoder,
            known=len(labelled) - invalid,
            n=len(model.classes),
            and_invalid=f" and {invalid} of none of them" if head.unknown else "",
            side=model.side,
            knows=KNOWS_NONE if head.unknown else KNOWS_THESE,
        ),
        recipe.package,
        WEIGHTS.format(
            build=recipe.build,
            prefix=recipe.prefix,
            features=recipe.features,
            and_none=", and of none of them" if head.unknown else "",
        ),
    )
    return Taken(model, portable.weights(model), about, texts)


def _fitted_by_the_worker(settings: Settings, arrays: ProjectArrays, labelled: Sequence[Row]) -> LinearHead | None:
    """The head that the worker wrote last; None where it has none, or one of other classes than those with labels: of
    the classes' names alone, or from before a change."""
    from neat_backend.ranking.linear_head import LinearHead

    kept = settings.balanced or settings.classifier != "resnet18"
    fields = prequential.read_head(arrays) if kept else None
    if fields is None:
        return None
    head = LinearHead(**fields)
    learnt = {head.classes[column] for column in head.columns}, head.unknown
    given = {row.label for row in labelled if not row.invalid}, any(row.invalid for row in labelled)
    return head if learnt == given else None


def _fitted_now(settings: Settings, project: Project, labelled: Sequence[Row]) -> LinearHead | None:
    """A head fitted as by the worker, to the stored features; None with fewer than two outputs."""
    from neat_backend.ranking.linear import fit_head
    from neat_backend.ranking.scores import INVALID

    classes = label_config.read(project.label_config, settings).classes
    features = Features(settings, project.id).of(labelled)
    codes = np.array([INVALID if row.invalid else classes.index(row.label) for row in labelled], np.int64)
    usable = ~np.isnan(features).any(axis=1)
    return fit_head(features[usable], codes[usable], classes)
