"""`python -m benchmarks encode`: what computes an encoder's features on a CPU, against a plain PyTorch loop."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Json, progress, report

Floats = NDArray[np.float32]
Encode = Callable[[Any], Floats]  # uint8 [n, 3, s, s] -> [n, dim], of any length

LOOP = "loop"
ROWS_AT_ONCE = 1000  # of the table of similarities


def encode(
    encoder: Annotated[str, typer.Option(help="As NEAT_ENCODER.")] = "efficientnet_lite0",
    weights: Annotated[Path | None, typer.Option(help="As NEAT_ENCODER_WEIGHTS.")] = None,
    dataset: Annotated[str, typer.Option(help="cifar10, cifar100, tiny-imagenet, fashion-mnist, digits.")] = "digits",
    data: Annotated[Path | None, typer.Option(help="The folder that the data set lies in.")] = None,
    images: Annotated[int, typer.Option(min=12, help="Images, the first of the test part.")] = 256,
    methods: Annotated[
        str, typer.Option(help="What is compared with the loop, separated by commas.")
    ] = "ours,openvino,openvino-bf16,onnxruntime,onnxruntime-int8",
    batch_size: Annotated[int, typer.Option(min=1, help="As NEAT_ENCODE_BATCH_SIZE.")] = 32,
    k: Annotated[int, typer.Option(min=1, max=100, help="Neighbours that are compared.")] = 10,
    as_json: Json = False,
) -> None:
    """An encoder by each library on the CPU, in turns of a batch, against a plain PyTorch loop in single precision.

    `ours` is NEAT_ENCODER_BACKEND=auto. The others are openvino, openvino-bf16, onnxruntime, onnxruntime-int8 (dynamic
    quantization) and compile (torch.compile). What is not installed, or the CPU can't compute, is left out with the
    reason. `same_neighbours` is the share of an image's k nearest neighbours that are those of the loop's features.

    Example: python -m benchmarks encode --dataset fashion-mnist --images 1000
    """
    import torch

    from neat_backend.models.encoders import build_encoder

    wanted = [name.strip() for name in methods.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise typer.BadParameter(f"--methods {unknown[0]!r}: {', '.join(METHODS)}")
    if images <= k:
        raise typer.BadParameter(f"--images {images}: more than --k {k} are needed")
    built = build_encoder(encoder, weights, "cpu")
    batches = [torch.stack(part) for part in _parts(_inputs(built, dataset, data, images), batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        made, left_out = _made(built, [LOOP, *wanted], Path(folder), batches[0])
        took, features = _in_turns(made, batches)
    expected = _nearest(features[LOOP], k)
    rows = [_row(name, took, features, expected, k) for name in made]
    figures = {
        "encoder": encoder,
        "dataset": dataset,
        "images": len(features[LOOP]),
        "batch_size": batch_size,
        "k": k,
        "threads": torch.get_num_threads(),
        **{f"left_out_{name}": reason for name, reason in left_out.items()},
        "aim": "ours at least 2 times the loop, same_neighbours at least 0.99",
    }
    report("encode", figures, as_json, rows, "method")


def _inputs(encoder: Any, dataset: str, data: Path | None, images: int) -> list[Any]:
    from PIL import Image

    from neat_backend.experiments.datasets import load

    found = load(dataset, data).test_images[:images]
    return [encoder.preprocess(Image.fromarray(pixels)) for pixels in found]


def _parts(inputs: list[Any], size: int) -> list[list[Any]]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def _made(encoder: Any, names: list[str], folder: Path, batch: Any) -> tuple[dict[str, Encode], dict[str, str]]:
    """The methods that work here, after their first batch, and why the others don't."""
    made: dict[str, Encode] = {}
    left_out: dict[str, str] = {}
    for name in names:
        progress.print(f"{name} …")
        try:
            method = METHODS[name](encoder, folder)
            method(batch)
        except Exception as error:  # of whichever library
            if name in (LOOP, "ours"):
                raise
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        else:
            made[name] = method
    return made, left_out


def _in_turns(made: dict[str, Encode], batches: list[Any]) -> tuple[dict[str, list[float]], dict[str, Floats]]:
    """Seconds by the clock and of all cores, and the features, of each method; each batch by all of them."""
    took = {name: [0.0, 0.0] for name in made}
    features: dict[str, list[Floats]] = {name: [] for name in made}
    for at, batch in enumerate(batches):
        for name, method in list(made.items())[:: 1 if at % 2 else -1]:
            clock, processor = time.perf_counter(), time.process_time()
            features[name].append(method(batch))
            took[name][0] += time.perf_counter() - clock
            took[name][1] += time.process_time() - processor
    return took, {name: np.concatenate(parts) for name, parts in features.items()}


def _row(
    name: str, took: dict[str, list[float]], features: dict[str, Floats], expected: NDArray[np.int64], k: int
) -> dict[str, Any]:
    images = len(expected)
    found = _nearest(features[name], k)
    shared = [len(np.intersect1d(one, other)) for one, other in zip(found, expected, strict=True)]
    return {
        "method": name,
        "images_per_second": images / took[name][0],
        "processor_ms_per_image": 1000 * took[name][1] / images,
        "times_loop": took[LOOP][0] / took[name][0],
        "times_loop_processor": took[LOOP][1] / took[name][1],
        "same_neighbours": float(np.sum(shared)) / (images * k),
        "largest_difference": float(np.abs(_unit(features[name]) - _unit(features[LOOP])).max()),
    }


def _unit(features: Floats) -> Floats:
    unit: Floats = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _nearest(features: Floats, k: int) -> NDArray[np.int64]:
    """The k rows of highest cosine similarity to each row [n, d], itself apart; [n, k], in any order."""
    unit = _unit(features).astype(np.float64)
    nearest = np.empty((len(unit), k), np.int64)
    for start in range(0, len(unit), ROWS_AT_ONCE):
        similar = unit[start : start + ROWS_AT_ONCE] @ unit.T
        similar[np.arange(len(similar)), start + np.arange(len(similar))] = -np.inf
        nearest[start : start + len(similar)] = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    return nearest


def _plain(encoder: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A copy of the network as PyTorch lays it out, and the normalisation of its input."""
    import torch

    cut = encoder.preprocessing
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (cut.mean, cut.std))
    network = copy.deepcopy(encoder.network).to(memory_format=torch.contiguous_format)
    return network, lambda batch: (batch.float() / 255 - mean) / std


def _loop(encoder: Any, folder: Path) -> Encode:
    import torch

    network, normalised = _plain(encoder)

    @torch.inference_mode()
    def method(batch: Any) -> Floats:
        found: Floats = network(normalised(batch)).numpy()
        return found

    return method


def _compiled(encoder: Any, folder: Path) -> Encode:
    import torch

    network, normalised = _plain(encoder)
    network = torch.compile(network)

    @torch.no_grad()
    def method(batch: Any) -> Floats:
        found: Floats = network(normalised(batch)).numpy()
        return found

    return method


def _by(backend: str) -> Callable[[Any, Path], Encode]:
    def make(encoder: Any, folder: Path) -> Encode:
        from neat_backend.models.backends import with_backend

        return with_backend(encoder, backend).encode

    return make


def _onnxruntime(*, quantized: bool) -> Callable[[Any, Path], Encode]:
    def make(encoder: Any, folder: Path) -> Encode:
        import onnxruntime
        import torch

        network, normalised = _plain(encoder)
        side = encoder.input_size
        file = folder / "network.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                network,
                (torch.zeros(2, 3, side, side),),
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            )
        assert written is not None
        written.save(file)
        if quantized:
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(file, folder / "int8.onnx")
            file = folder / "int8.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def method(batch: Any) -> Floats:
            found: Floats = session.run(None, {name: normalised(batch).numpy()})[0]
            return found

        return method

    return make


METHODS: dict[str, Callable[[Any, Path], Encode]] = {
    LOOP: _loop,
    "ours": _by("auto"),
    "openvino": _by("openvino"),
    "openvino-bf16": _by("openvino-bf16"),
    "onnxruntime": _onnxruntime(quantized=False),
    "onnxruntime-int8": _onnxruntime(quantized=True),
    "compile": _compiled,
}
