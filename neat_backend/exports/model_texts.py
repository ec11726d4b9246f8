"""The texts of an exported model's folder, for any classifier: predict.py and README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neat_backend.exports.portable import Portable


@dataclass(frozen=True)
class Kind:
    """The model's file format: its lines of the example, and its part of the README."""

    package: str
    load: str
    classify: str
    takes: str
    written: str


KINDS = {
    "pt2": Kind(
        "torch",
        'torch.export.load(here / "model.pt2").module()',
        "{outputs} = model(torch.from_numpy(np.array(image))[None])",
        "takes uint8 {images} and gives {outputs}",
        "by PyTorch {torch}",
    ),
    "onnx": Kind(
        "onnxruntime",
        'onnxruntime.InferenceSession(here / "model.onnx")',
        '[{outputs}] = model.run(None, {{"images": np.array(image)[None]}})',
        "takes `images`, uint8 {images}, and gives {outputs}",
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
    image = Image.open(name)  # rotated as browsers do: not by XMP or a WebP's EXIF
    image.info = {{k: v for k, v in image.info.items() if "xmp" not in k and (k, image.format) != ("exif", "WEBP")}}
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
{cut}
    {classify}
    classes = dict(zip(about["classes"], probabilities[0].tolist()))
    print(json.dumps({printed}))
'''
OUTPUTS = {
    "probabilities": "of each class, in the order of `classes`, given that the image is of one of them; they sum to 1",
    "none_of_these": "that the image is of none of the classes",
}

# An image is made the network's square in one of these ways.
CENTRE_FIRST = """\
    image = image.reduce(max(1, min(image.size) // (2 * about["image_size"])))
    w, h, s, size = *image.size, min(image.size), [about["image_size"]] * 2
    image = image.crop(((w - s) // 2, (h - s) // 2, (w + s) // 2, (h + s) // 2)).resize(size, Image.BICUBIC)"""
EDGE_FIRST = """\
    w, h, most, side = *image.size, 4 * min(image.size), about["image_size"]
    left, top = max(0, (w - most) // 2), max(0, (h - most) // 2)
    image = image.crop((left, top, min(w, left + most), min(h, top + most)))
    size = [int(about["resize"] * edge / min(image.size)) for edge in image.size]
    left, top = [round((edge - side) / 2) for edge in size]
    image = image.resize(size, Image.{resample}, reducing_gap=2.0).crop((left, top, left + side, top + side))"""
SQUASHED = """\
    image = image.resize([about["image_size"]] * 2, Image.{resample}, reducing_gap=2.0)"""

README = """# {title}: {name}

{description}
{score}
`pip install numpy pillow {package}`, then `python predict.py IMAGE...`, which is this:

```python
{predict}```
{printed}
`{model}` {takes}:

{outputs}

It was written {written}, and computes in float32. The weights alone load in any version of PyTorch,
for further training too (`pip install safetensors {library}`):

```python
{weights}```
"""
SCORE = """Of the last {tested} labels of its classes it named {right} right before it had learnt them.
"""
PRINTED = """
It prints `{"classes": {…}, "none of these": …}` for each image: the second says how likely the image is of none of the
classes, the first how likely it is of each if it is of one of them.
"""


@dataclass(frozen=True)
class Taken:
    """A classifier for export; about: its part of model.json."""

    model: Portable
    weights: bytes  # model.safetensors
    about: Mapping[str, Any]
    texts: Texts


@dataclass(frozen=True)
class Texts:
    """The texts that depend on the classifier.

    cut          lines of predict.py that make an image the network's square
    name, description   in the README: its title, and what the classifier is
    library      what its weights alone need beside PyTorch and safetensors
    weights      Python that loads them
    """

    cut: str
    name: str
    description: str
    library: str
    weights: str


def predict(kind: Kind, texts: Texts, outputs: Sequence[str]) -> str:
    """The program predict.py."""
    printed = '{"classes": classes, "none of these": none_of_these[0].item()}' if len(outputs) > 1 else "classes"
    classify = kind.classify.format(outputs=", ".join(outputs))
    return PREDICT.format(package=kind.package, load=kind.load, cut=texts.cut, classify=classify, printed=printed)


def readme(about: Mapping[str, Any], kind: Kind, texts: Texts, program: str) -> str:
    """README.md; about: the content of model.json."""
    n, side = len(about["classes"]), about["image_size"]
    shapes = {"probabilities": f"[n, {n}]", "none_of_these": "[n]"}
    outputs = about["outputs"]
    return README.format(
        title=about["title"] or f"Project {about['project']}",
        name=texts.name,
        description=texts.description,
        score=SCORE.format_map(about) if about["tested"] else "",
        predict=program,
        printed=PRINTED if len(outputs) > 1 else "",
        weights=texts.weights,
        library=texts.library,
        package=kind.package,
        model=about["model"],
        takes=kind.takes.format(images=f"[n, {side}, {side}, 3]", outputs=" and ".join(f"`{one}`" for one in outputs)),
        outputs="\n".join(f"- `{one}`, float32 {shapes[one]}: {what}" for one, what in outputs.items()),
        written=kind.written.format_map(about),
    )
