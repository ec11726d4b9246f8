"""An exported classifier, used where this package isn't: the same probabilities as the backend's own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from neat_backend import cli, exports
from neat_backend.compute.embedding import prepare
from neat_backend.errors import BadRequest, UnknownProject
from neat_backend.exports import export_model
from neat_backend.labelstudio import images
from neat_backend.labelstudio.images import decode
from neat_backend.models import classifier as classifiers
from neat_backend.models.classifier import NETWORK, Classifier, Schedule, fit, fresh
from neat_backend.store import prequential, rounds
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.prequential import Prequential
from tests.exports.labelled import PROJECT, Labelled
from tests.exports.outside import alone, content, take_out
from tests.serving import begin_round

CLASSES = ("dog", "cat", 'Ωwl\'s "own"')


def train(labelled: Labelled, side: int = 16, learnt: bool = False) -> Classifier:
    """A round that is done, with its classifier, which is in force."""
    if learnt:
        images = np.random.default_rng(side).integers(0, 256, (12, side, side, 3), np.uint8)
        made = fit(images, np.arange(12) % 3, 3, schedule=Schedule(epochs=1), device="cpu")
    else:
        cpu = torch.device("cpu")
        made = Classifier(fresh(NETWORK, 3, side, 0, cpu), 3, side, cpu)
    made.classes = CLASSES
    with labelled.database.begin() as conn:
        begun = begin_round(
            conn, PROJECT, known=30, invalid=4, unlabelled=6, queried=34, queried_known=30, classes=CLASSES
        )
        rounds.finish(conn, PROJECT, begun.number, seconds=1, held_out=10, held_out_correct=9)
    arrays = ProjectArrays(labelled.settings.data_dir, PROJECT)
    made.save(arrays.folder("models") / f"{begun.number:06d}.safetensors")
    prequential.write(arrays, Prequential(in_force="resnet18", why="it was right more often"))
    return made


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_the_loading_example_gives_the_backends_probabilities_without_the_backend(
    labelled: Labelled, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(classifiers, "bfloat16_is_faster", lambda device: False)  # as what is exported computes
    own = train(labelled, learnt=True)
    about = take_out(labelled, tmp_path / "model", format=format)
    assert about["held_out_accuracy"] == 0.9
    take_out(labelled, tmp_path / "again", format=format)
    assert content(tmp_path / "model") == content(tmp_path / "again"), "the same bytes for the same classifier"
    here = str(Path(exports.__file__).parents[2]).encode()
    for file in (tmp_path / "model").iterdir():
        assert here not in file.read_bytes(), f"{file.name} names a folder of this machine"
    assert set(content(tmp_path / "model")) == {
        "README.md",
        "model.json",
        f"model.{format}",
        "model.safetensors",
        "predict.py",
    }
    example = str(tmp_path / "model" / "predict.py")
    said = alone(tmp_path, example, *map(str, pictures), without="torch" if format == "onnx" else "")
    assert len(said.splitlines()) == len(pictures) == 7
    for line, picture in zip(said.splitlines(), pictures, strict=True):
        found = json.loads(line)
        assert tuple(found) == CLASSES
        thumbnail, _ = prepare(decode(picture.read_bytes(), 10**6), own.side, images.thumbnail, lambda image: None)
        expected = own.predict_proba(thumbnail[None])[0]
        np.testing.assert_allclose(list(found.values()), expected, atol=1e-6)


def test_onnx_runtime_gives_the_same_probabilities_for_any_number_of_images(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers, "bfloat16_is_faster", lambda device: False)
    own = train(labelled, side=64)  # with the ordinary stem; the examples above have the one for small images
    take_out(labelled, tmp_path / "model", format="onnx")
    images = np.random.default_rng(2).integers(0, 256, (67, 64, 64, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "read.py").write_text(
        """import json, numpy as np, onnx, onnxruntime
onnx.checker.check_model("model/model.onnx", full_check=True)
model = onnxruntime.InferenceSession("model/model.onnx")
(taken,), (given,) = model.get_inputs(), model.get_outputs()
print(json.dumps([taken.name, taken.type, taken.shape, given.name, given.type, given.shape]))
print(model.get_modelmeta().custom_metadata_map["classes"])
images = np.load("images.npy")
for n in (1, 2, 67):
    print(json.dumps(model.run(None, {"images": images[:n]})[0].tolist()))
"""
    )
    shapes, classes, *found = map(json.loads, alone(tmp_path, "read.py", without="torch").splitlines())
    assert shapes == ["images", "tensor(uint8)", ["n", 64, 64, 3], "probabilities", "tensor(float)", ["n", 3]]
    assert tuple(classes) == CLASSES
    expected = own.predict_proba(images)
    for n, probabilities in zip((1, 2, 67), found, strict=True):
        np.testing.assert_allclose(probabilities, expected[:n], atol=1e-5)


def test_the_readme_shows_that_example_and_how_to_load_the_weights_alone(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers, "bfloat16_is_faster", lambda device: False)
    for side in (16, 64):  # with the stem for small images, and the ordinary one
        own = train(labelled, side)
        monkeypatch.setattr("neat_backend.exports.portable.pt2", lambda classifier: b"")  # the other test's subject
        take_out(labelled, tmp_path / f"model-{side}")
        readme = (tmp_path / f"model-{side}" / "README.md").read_text()
        assert "Of 10 that were kept out of training it gets 9 right." in readme
        example, weights = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        assert example == (tmp_path / f"model-{side}" / "predict.py").read_text()
        assert len([line for line in example.splitlines() if line and "import" not in line]) <= 15  # and its first line
        (tmp_path / f"model-{side}" / "weights.py").write_text(weights + "print(probabilities[0].tolist())\n")
        said = json.loads(alone(tmp_path / f"model-{side}", "weights.py"))
        black = np.zeros((1, side, side, 3), np.uint8)
        np.testing.assert_allclose(said, own.predict_proba(black)[0], atol=1e-6)


def test_the_last_round_that_is_done_counts(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neat_backend.exports.portable.pt2", lambda classifier: b"")
    train(labelled)
    train(labelled)
    with labelled.database.begin() as conn:
        failed = begin_round(
            conn, PROJECT, known=1, invalid=0, unlabelled=1, queried=0, queried_known=0, classes=("x",)
        )
        rounds.fail(conn, PROJECT, failed.number, "no memory")
    assert take_out(labelled, tmp_path / "model")["round"] == 2
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert (about["round"], tuple(about["classes"]), about["image_size"]) == (2, CLASSES, 16)


class TestWhatCannotBe:
    def test_another_format(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(BadRequest, match="no format 'pickle' for models; one of pt2, onnx"):
            take_out(labelled, tmp_path / "model", format="pickle")

    def test_another_classifier(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(BadRequest, match="no classifier 'vote'; one of in-force, resnet18, linear"):
            take_out(labelled, tmp_path / "model", classifier="vote")

    def test_onnx_without_its_packages(
        self, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        train(labelled)
        with pytest.raises(BadRequest, match=r"pip install onnx onnxscript"):
            take_out(labelled, tmp_path / "model", format="onnx")
        assert {path.name for path in tmp_path.iterdir()} == {"data"}

    def test_without_a_round_the_remedy_is_named(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(BadRequest, match=r"no trained ResNet-18 yet.*neat-backend train 7.*--classifier linear"):
            take_out(labelled, tmp_path / "model", classifier="resnet18")
        assert {path.name for path in tmp_path.iterdir()} == {"data"}

    def test_unknown_project(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(UnknownProject):
            export_model(labelled.settings, labelled.database, 8, tmp_path / "model")

    def test_a_target_that_exists(self, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("neat_backend.exports.portable.pt2", lambda classifier: b"")
        train(labelled)
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "mine").touch()
        with pytest.raises(BadRequest, match="--overwrite"):
            take_out(labelled, tmp_path / "model")
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]
        take_out(labelled, tmp_path / "model", overwrite=True)
        assert (tmp_path / "model" / "predict.py").exists()
        assert {path.name for path in tmp_path.iterdir()} == {"data", "model"}

    def test_a_target_that_cannot_be_written(self, labelled: Labelled) -> None:
        train(labelled)
        with pytest.raises(BadRequest, match="can't be written"):
            take_out(labelled, Path("/proc/model"))

    def test_what_is_interrupted_leaves_nothing(
        self, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(classifier: Classifier) -> bytes:
            raise KeyboardInterrupt

        monkeypatch.setattr("neat_backend.exports.portable.pt2", interrupted)
        train(labelled)
        with pytest.raises(KeyboardInterrupt):
            take_out(labelled, tmp_path / "model")
        assert {path.name for path in tmp_path.iterdir()} == {"data"}

    def test_on_the_command_line(self, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NEAT_DATA_DIR", str(labelled.settings.data_dir))
        monkeypatch.setattr("neat_backend.exports.portable.pt2", lambda classifier: b"")
        given = ["export-model", "7", "--out", str(tmp_path / "model"), "--json"]
        assert isinstance(CliRunner().invoke(cli.app, given).exception, BadRequest)
        train(labelled)
        done = CliRunner().invoke(cli.app, given)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["round"] == 1
