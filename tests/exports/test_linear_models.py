"""The linear classifier, exported with its encoder: the head that the worker uses, the probabilities that it gives."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from neat_backend import cli, exports
from neat_backend.errors import BadRequest, EncoderError
from neat_backend.labelstudio.images import decode
from neat_backend.models import encoders
from neat_backend.models.encoders import Encoder, Preprocessing, build_encoder
from neat_backend.ranking.linear import fit_head, name_head
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.scores import INVALID
from neat_backend.store import prequential, projects
from neat_backend.store.arrays import ProjectArrays, image_key
from neat_backend.store.prequential import RIGHT, SILENT, WRONG, Prequential
from tests.exports.labelled import PROJECT, Labelled, picture
from tests.exports.outside import alone, content, take_out

CLASSES = ("dog", "cat")
EDGE = Preprocessing(12, 14, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), bicubic=False)
SQUASH = Preprocessing(12, 12, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), squash=True)


def tiny(cut: Preprocessing = EDGE) -> Encoder:
    """An encoder of 48 features that is exported in a moment."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = nn.Sequential(nn.Conv2d(3, 12, 6, stride=6), nn.ReLU(), nn.Flatten())
    return Encoder("tiny-0123", network, cut, torch.device("cpu"))


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """The tiny one, which any NEAT_ENCODER names now."""
    made = tiny()
    monkeypatch.setattr(encoders, "build_encoder", lambda name, weights, device: made)
    return made


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is beside it is looked at, the model is left out."""
    monkeypatch.setattr("neat_backend.exports.portable.pt2", lambda model: b"")


def encode(encoder: Encoder, pictures: list[Image.Image]) -> np.ndarray:
    return encoder.encode(torch.stack([encoder.preprocess(picture) for picture in pictures]))


def learn(labelled: Labelled, encoder: Encoder, invalid: bool = True, backend: str = "") -> LinearHead:
    """All images encoded and stored, in any order of tasks; the head that the labels give."""
    if not invalid:
        labelled.answer(dict.fromkeys(range(31, 35), "dog"))
    tasks = np.arange(1, 41)
    features = encode(encoder, [decode(picture(n), 10**6) for n in range(1, 41)])
    keys = [image_key(f"/data/upload/{n}.png") for n in tasks]
    arrays = ProjectArrays(labelled.settings.data_dir, PROJECT)
    for part in (slice(20, None), slice(20)):
        arrays.append(f"features/{encoder.key}{backend}", tasks[part], keys[part], features[part])
    head = fit_head(features[:34], np.repeat([0, 1, INVALID if invalid else 0], [20, 10, 4]), CLASSES)
    assert head is not None
    return head


def keep(labelled: Labelled, head: LinearHead | None) -> None:
    """As the worker keeps its head."""
    prequential.write_head(ProjectArrays(labelled.settings.data_dir, PROJECT), None if head is None else vars(head))


def weights(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    found = load_file(folder / "model.safetensors")
    return found["head.weight"].numpy(), found["head.bias"].numpy()


def efficientnet(folder: Path) -> tuple[str, Path | None]:
    return "efficientnet_lite0", None


def resnet(folder: Path) -> tuple[str, Path | None]:
    from torchvision import models

    torch.manual_seed(0)
    save_file(models.resnet18(weights=None).state_dict(), folder / "resnet.safetensors")
    return "resnet18", folder / "resnet.safetensors"


def clip(folder: Path) -> tuple[str, Path | None]:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32", pretrained=None, precision="fp32")
    save_file(model.state_dict(), folder / "clip.safetensors")
    return "clip:ViT-S-32/own", folder / "clip.safetensors"


@pytest.mark.parametrize(
    ("made", "format", "invalid"), [(efficientnet, "onnx", True), (resnet, "pt2", True), (clip, "pt2", False)]
)
def test_an_image_file_gets_the_backends_probabilities_without_the_backend(
    labelled: Labelled,
    tmp_path: Path,
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[Path], Any],
    format: str,
    invalid: bool,
) -> None:
    name, file = made(tmp_path)
    encoder = build_encoder(name, file, "cpu")
    head = learn(labelled, encoder, invalid)
    keep(labelled, head)
    labelled.settings = labelled.settings.model_copy(update={"encoder": name, "encoder_weights": file})
    about = take_out(labelled, tmp_path / "model", format=format)
    assert (about["classifier"], about["encoder"], about["image_size"]) == ("linear", encoder.key, encoder.input_size)
    here = str(Path(exports.__file__).parents[2]).encode()
    for written in (tmp_path / "model").iterdir():
        assert here not in written.read_bytes(), f"{written.name} names a folder of this machine"

    example = str(tmp_path / "model" / "predict.py")
    said = alone(tmp_path, example, *map(str, pictures), without="torch" if format == "onnx" else "")
    expected, known = head.predict(encode(encoder, [decode(path.read_bytes(), 10**6) for path in pictures]))
    lines = [json.loads(line) for line in said.splitlines()]
    given = [line["classes"] if invalid else line for line in lines]
    assert [tuple(line) for line in given] == [CLASSES] * len(pictures)
    np.testing.assert_allclose([list(line.values()) for line in given], expected, atol=1e-4)
    assert np.ptp(expected[:, 0]) > 0.01, "the pictures differ by more than the tolerance"
    if invalid:
        np.testing.assert_allclose([line["none of these"] for line in lines], 1 - known, atol=1e-4)

    black = encoder.encode(torch.zeros(1, 3, encoder.input_size, encoder.input_size, dtype=torch.uint8))
    _, loading = re.findall(r"```python\n(.*?)```", (tmp_path / "model" / "README.md").read_text(), re.DOTALL)
    (tmp_path / "model" / "weights.py").write_text(loading)
    monkeypatch.chdir(tmp_path / "model")
    by_weights = runpy.run_path("weights.py")["probabilities"].detach().numpy()
    np.testing.assert_allclose(by_weights, head.predict(black)[0], atol=1e-4)


@pytest.mark.parametrize("cut", [EDGE, SQUASH])
def test_predict_cuts_images_as_the_encoder_does_and_bytes_are_the_same_again(
    labelled: Labelled, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, cut: Preprocessing
) -> None:
    made = tiny(cut)
    monkeypatch.setattr(encoders, "build_encoder", lambda name, weights, device: made)
    head = learn(labelled, made)
    take_out(labelled, tmp_path / "model")
    take_out(labelled, tmp_path / "again")
    assert content(tmp_path / "model") == content(tmp_path / "again")
    said = alone(tmp_path, str(tmp_path / "model" / "predict.py"), *map(str, pictures))
    given = [json.loads(line) for line in said.splitlines()]
    expected, known = head.predict(encode(made, [decode(path.read_bytes(), 10**6) for path in pictures]))
    np.testing.assert_allclose([list(line["classes"].values()) for line in given], expected, atol=1e-5)
    np.testing.assert_allclose([line["none of these"] for line in given], 1 - known, atol=1e-5)


@pytest.mark.usefixtures("no_program")
class TestTheHead:
    def test_it_is_the_workers(self, labelled: Labelled, tmp_path: Path, encoder: Encoder) -> None:
        head = learn(labelled, encoder)
        head = replace(head, weights=head.weights + 1)
        keep(labelled, head)
        take_out(labelled, tmp_path / "model")
        for found, expected in zip(weights(tmp_path / "model"), (head.weights, head.biases), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_where_the_worker_has_left_none_it_is_fitted_in_the_same_way(
        self, labelled: Labelled, tmp_path: Path, encoder: Encoder
    ) -> None:
        head = learn(labelled, encoder)
        take_out(labelled, tmp_path / "model")
        for found, expected in zip(weights(tmp_path / "model"), (head.weights, head.biases), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_one_of_names_or_of_labels_that_have_gone_is_not_taken(
        self, labelled: Labelled, tmp_path: Path, encoder: Encoder
    ) -> None:
        head = learn(labelled, encoder, invalid=False)
        keep(labelled, name_head(np.ones((3, encoder.dim), np.float32), CLASSES))
        take_out(labelled, tmp_path / "model")
        np.testing.assert_allclose(weights(tmp_path / "model")[0], head.weights, atol=1e-6)

    def test_one_that_the_worker_no_longer_keeps_up_is_not_taken(
        self, labelled: Labelled, tmp_path: Path, encoder: Encoder
    ) -> None:
        head = learn(labelled, encoder)
        keep(labelled, replace(head, weights=head.weights + 1))
        labelled.settings = labelled.settings.model_copy(update={"classifier": "resnet18", "rerank": "round"})
        take_out(labelled, tmp_path / "model", classifier="linear")
        np.testing.assert_allclose(weights(tmp_path / "model")[0], head.weights, atol=1e-6)

    def test_features_by_openvino_go_with_the_same_network_and_are_named(
        self, labelled: Labelled, tmp_path: Path, encoder: Encoder
    ) -> None:
        head = learn(labelled, encoder, backend="-openvino")
        about = take_out(labelled, tmp_path / "model")
        assert about["encoder"] == "tiny-0123-openvino"
        np.testing.assert_allclose(weights(tmp_path / "model")[0], head.weights, atol=1e-6)

    def test_a_class_without_labels_is_named_apart(self, labelled: Labelled, tmp_path: Path, encoder: Encoder) -> None:
        learn(labelled, encoder)
        labelled.answer(dict.fromkeys(range(21, 31), "dog"))
        about = take_out(labelled, tmp_path / "model")
        assert (about["classes"], about["classes_without_labels"]) == (["dog"], ["cat"])
        assert weights(tmp_path / "model")[0].shape == (2, encoder.dim)


@pytest.mark.usefixtures("no_program", "encoder")
class TestWhichOne:
    """Nothing is tested yet unless said."""

    @pytest.fixture(autouse=True)
    def learnt(self, labelled: Labelled) -> None:
        learn(labelled, tiny())

    def test_the_linear_one_until_labels_have_told(self, labelled: Labelled, tmp_path: Path) -> None:
        about = take_out(labelled, tmp_path / "model")
        assert (about["classifier"], about["in_force"]) == ("linear", "linear")
        assert about["why"] == "NEAT_CLASSIFIER=auto; too few labels to compare"
        assert (about["tested"], about["right"], about["labelled"], about["invalid"]) == (0, 0, 30, 4)
        assert "right before" not in (tmp_path / "model" / "README.md").read_text()

    def test_the_one_in_force_with_how_often_it_was_right(self, labelled: Labelled, tmp_path: Path) -> None:
        columns = [[RIGHT, SILENT, RIGHT], [WRONG, WRONG, WRONG], [RIGHT, RIGHT, RIGHT]]
        tested = Prequential(np.array(columns, np.int8), "linear", "it was right more often", 3)
        arrays = ProjectArrays(labelled.settings.data_dir, PROJECT)
        prequential.write(arrays, tested)
        about = take_out(labelled, tmp_path / "model")
        assert (about["why"], about["tested"], about["right"]) == ("it was right more often", 2, 1)
        readme = (tmp_path / "model" / "README.md").read_text()
        assert "Of the last 2 labels of its classes it named 1 right before it had learnt them." in readme

        prequential.write(arrays, replace(tested, in_force="resnet18"))
        with pytest.raises(BadRequest, match="no trained ResNet-18 yet"):
            take_out(labelled, tmp_path / "other")
        about = take_out(labelled, tmp_path / "other", classifier="linear")
        assert (about["classifier"], about["in_force"]) == ("linear", "resnet18")

    def test_the_projects_own_choice(self, labelled: Labelled, tmp_path: Path) -> None:
        with labelled.database.begin() as conn:
            projects.save_connection(conn, PROJECT, extra_params={"NEAT_CLASSIFIER": "resnet18"})
        with pytest.raises(BadRequest, match="no trained ResNet-18 yet"):
            take_out(labelled, tmp_path / "model")

    def test_on_the_command_line(self, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NEAT_DATA_DIR", str(labelled.settings.data_dir))
        monkeypatch.setenv("NEAT_CLASSIFIER", "resnet18")
        given = ["export-model", "7", "--out", str(tmp_path / "model")]
        assert isinstance(CliRunner().invoke(cli.app, given).exception, BadRequest)
        done = CliRunner().invoke(cli.app, [*given, "--classifier", "linear"])
        assert done.exit_code == 0, done.output
        assert "the linear classifier of 30 labels written" in " ".join(done.stdout.split())
        assert json.loads((tmp_path / "model" / "model.json").read_text())["classifier"] == "linear"


@pytest.mark.usefixtures("no_program")
class TestWhatCannotBe:
    def test_before_an_image_is_encoded(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(BadRequest, match=r"no linear classifier yet: label images of .*--classifier resnet18"):
            take_out(labelled, tmp_path / "model")
        assert {path.name for path in tmp_path.iterdir()} == {"data"}

    def test_with_the_names_of_classes_alone(self, labelled: Labelled, tmp_path: Path, encoder: Encoder) -> None:
        learn(labelled, encoder)
        labelled.answer(dict.fromkeys(range(1, 35), None))
        keep(labelled, name_head(np.ones((3, encoder.dim), np.float32), CLASSES))
        with pytest.raises(BadRequest, match="no linear classifier yet"):
            take_out(labelled, tmp_path / "model")

    def test_with_another_encoder_than_the_workers(
        self, labelled: Labelled, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learn(labelled, encoder)
        monkeypatch.setattr(encoder, "key", "other-4567")
        with pytest.raises(BadRequest, match=r"features of tiny-0123.* is other-4567 here: .*NEAT_ENCODER_WEIGHTS"):
            take_out(labelled, tmp_path / "model")

    def test_without_the_encoders_weights(self, labelled: Labelled, tmp_path: Path) -> None:
        learn(labelled, tiny())
        gone = {"encoder": "resnet18", "encoder_weights": tmp_path / "gone.pt"}
        labelled.settings = labelled.settings.model_copy(update=gone)
        with pytest.raises(EncoderError, match=r"gone\.pt: there is no such file"):
            take_out(labelled, tmp_path / "model")
        assert {path.name for path in tmp_path.iterdir()} == {"data"}
