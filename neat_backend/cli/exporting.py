"""`export`: the labelled data set, as a file or a folder. `export-model`: the classifier."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json, ProjectId
from neat_backend.errors import BadRequest

if TYPE_CHECKING:
    from neat_backend import exports
else:
    exports = terminal.later("neat_backend.exports")

FORMATS = ("csv", "jsonl", "parquet", "folder", "hf", "coco")  # those of neat_backend.exports, which loads slowly
MODEL_FORMATS = ("pt2", "onnx")
CLASSIFIERS = ("in-force", "resnet18", "linear")

commands = typer.Typer()


def complete_formats(incomplete: str) -> list[str]:
    return [name for name in FORMATS if name.startswith(incomplete)]


def complete_model_formats(incomplete: str) -> list[str]:
    return [name for name in MODEL_FORMATS if name.startswith(incomplete)]


def complete_classifiers(incomplete: str) -> list[str]:
    return [name for name in CLASSIFIERS if name.startswith(incomplete)]


@commands.command()
def export(
    project: ProjectId,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, or for images the folder, to write.")],
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}.", autocompletion=complete_formats)] = "csv",
    include_invalid: Annotated[bool, typer.Option("--include-invalid", help="Not the known ones alone.")] = False,
    since: Annotated[datetime | None, typer.Option(help="Labelled since then, UTC.")] = None,
    round: Annotated[int | None, typer.Option(help="Labelled for this query round.")] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the annotators that must agree with the label.")
    ] = 0.0,
    features: Annotated[
        str, typer.Option(help="With a table, the images' features too: npy (a file beside it) or parquet.")
    ] = "",
    images: Annotated[
        str, typer.Option(help="In folders: copy, link (see --image-root), or with folder manifest (no images).")
    ] = "copy",
    image_root: Annotated[
        Path | None, typer.Option(help="For links: the folder that Label Studio serves local files or uploads from.")
    ] = None,
    split: Annotated[str, typer.Option(help="Shares of train, val and test, within each class.")] = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out images that can't be had; skipped.csv lists them.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="In CSV, no ' before texts that a spreadsheet would run as a formula.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there, once it is whole.")] = False,
    as_json: Json = False,
) -> None:
    """Write the labelled data set, completely or not at all; the same labels give the same bytes.

    folder, hf and coco include the images; after an interruption, only missing ones are fetched.

    Examples: neat-backend export 3 --out labels.csv ·
    neat-backend export 3 --format folder --out dataset --split 0.7,0.2,0.1 --seed 1 ·
    neat-backend export 3 --format parquet --features parquet --out labels.parquet
    """
    from neat_backend.progress import Progress

    service = terminal.service()
    wanted = exports.Wanted(
        include_invalid, since.replace(tzinfo=timezone.utc) if since else None, round, min_agreement
    )
    warnings: list[str] = []
    with Progress(terminal.err()) as progress:
        count = exports.export(
            service.settings,
            service.database,
            project,
            out,
            exports.Options(
                format=format,
                wanted=wanted,
                overwrite=overwrite,
                features=features,
                images=images,
                image_root=image_root,
                split=_shares(split),
                seed=seed,
                skip_missing=skip_missing,
                raw=raw,
            ),
            on_warning=warnings.append,
            on_progress=lambda done, total: progress.show("images", done, total),
        )
    for words in warnings:
        terminal.warn(words)
    summary = {"labels": count, "format": format, "out": str(out), "warnings": warnings}
    terminal.show(summary, as_json, f"{count} labels written to {out}")


@commands.command("export-model")
def export_model(
    project: ProjectId,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    format: Annotated[
        str,
        typer.Option(
            help="What the model is kept as: pt2, for PyTorch, or onnx.", autocompletion=complete_model_formats
        ),
    ] = "pt2",
    classifier: Annotated[
        str,
        typer.Option(
            help="in-force (the one that leads the order now), resnet18, or linear.",
            autocompletion=complete_classifiers,
        ),
    ] = "in-force",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there, once it is whole.")] = False,
    as_json: Json = False,
) -> None:
    """Write the classifier in force: weights, classes, preprocessing, a program that uses it, instructions.

    Using it does not need this package.

    Examples: neat-backend export-model 3 --out classifier · python classifier/predict.py image.jpg ·
    neat-backend export-model 3 --format onnx --classifier linear --out classifier-onnx
    """
    service = terminal.service()
    about = exports.export_model(
        service.settings, service.database, project, out, overwrite, format=format, classifier=classifier
    )
    what = (
        f"ResNet-18 of round {about['round']}"
        if "round" in about
        else f"linear classifier of {about['labelled']} labels"
    )
    words = f"the {what} written to {out}; {out / 'README.md'} says how to use it"
    terminal.show({**about, "out": str(out)}, as_json, words)


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BadRequest(f"--split {text!r}: give three shares, such as 0.8,0.1,0.1", "split") from None
