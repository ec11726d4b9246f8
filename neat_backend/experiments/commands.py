"""`neat-backend experiment …`: the paper's experiments, and their tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from neat_backend.errors import SettingsError
from neat_backend.experiments.presets import ALL_ORDERS, ALL_STRATEGIES, PRESETS, Preset, preset
from neat_backend.experiments.protocols import CLASSIFIERS, PROTOCOLS, LiveProtocol, Protocol
from neat_backend.settings import Settings

if TYPE_CHECKING:
    from neat_backend.experiments.runner import Machine

app = typer.Typer(help="Compare strategies on data sets whose labels are known.", no_args_is_help=True)
DEFAULTS = {"batch": "fashion-quick", "live": "live-fashion"}  # presets, by protocol
INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C has ended

Out = Annotated[Path | None, typer.Option(help="Folder for checkpoints and results; default: by the preset's name.")]
Folders = Annotated[
    list[Path] | None, typer.Argument(help="Folders of experiments, those below counted in; default: all.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; default: NEAT_DEVICE.")]
Weights = Annotated[Path | None, typer.Option(help="File with the encoder's weights, instead of a download.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of computed features; default: features in NEAT_DATA_DIR.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at the same time, each a process with its own copy of the data.")]


def _presets() -> str:
    return "; ".join(f"{name}: {one.about}" for name, one in PRESETS.items())


@app.command()
def run(
    preset_name: Annotated[
        str | None, typer.Option("--preset", help=f"Default: {' or '.join(DEFAULTS.values())}. {_presets()}")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="batch: queries of B labels, strategies; live: the engine, one label at a time, orders. "
            "Default: the preset's."
        ),
    ] = None,
    out: Out = None,
    strategies: Annotated[
        str | None, typer.Option(help=f"Separated by commas: {', '.join(ALL_STRATEGIES)}, or hybrid:NAME.")
    ] = None,
    orders: Annotated[str | None, typer.Option(help=f"Live: separated by commas, of {', '.join(ALL_ORDERS)}.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="cifar10, cifar100, tiny-imagenet, fashion-mnist, digits or folder.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that the data set lies in.")] = None,
    side: Annotated[int | None, typer.Option(help="Pixels that a folder's images are scaled to.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Use so many of them, the same for all seeds.")] = None,
    test_images: Annotated[int | None, typer.Option(help="Use so many of them.")] = None,
    known: Annotated[int | None, typer.Option(help="How many classes are known.")] = None,
    choice: Annotated[
        str | None,
        typer.Option(
            help="Which: seed (each seed draws its own), first, draw:N (N draws for each seed), draw:A-B (draws A to B "
            "of the same list), or 0,1;8,9."
        ),
    ] = None,
    initial: Annotated[
        float | None, typer.Option(help="Labels at the start: share of the known samples, or a number from 1 on.")
    ] = None,
    labels: Annotated[int | None, typer.Option(help="Live: number of labels to query.")] = None,
    start: Annotated[int | None, typer.Option(help="Live: labels of each class at the start; 0 = none.")] = None,
    random_share: Annotated[float | None, typer.Option(help="Live: drawn at random, as NEAT_RANDOM_SHARE.")] = None,
    batch: Annotated[int | None, typer.Option(help="B, labels in a query; live: between two rounds.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Queries.")] = None,
    encoder: Annotated[str | None, typer.Option(help="As NEAT_ENCODER.")] = None,
    classifier: Annotated[str | None, typer.Option(help=f"{', '.join(CLASSIFIERS)} (on the features).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the image classifiers.")] = None,
    k: Annotated[int | None, typer.Option(help="K, neighbours looked at.")] = None,
    rule: Annotated[str | None, typer.Option(help="all (the paper) or majority (the authors' code).")] = None,
    cut: Annotated[
        int | None, typer.Option(help="Rank only so many B of the candidates; the authors' code: 2.")
    ] = None,
    target_precision: Annotated[
        float | None, typer.Option(help="neat_plus: the share of a query that is to be of known classes.")
    ] = None,
    components: Annotated[
        int | None, typer.Option(help="Use only so many components of the features: quicker; default: all.")
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(help=f"One experiment for each value, as k=5,10,15,20; of {', '.join(Protocol.may_vary)}."),
    ] = None,
    jobs: Jobs = 1,
    device: Device = None,
    encoder_weights: Weights = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Run an experiment: a preset, changed by the options. Started again, it continues where it stopped.

    Examples: neat-backend experiment run --preset fashion-quick ·
    neat-backend experiment run --preset cifar10 --data cifar-10-batches-bin --strategies neat,lfosa ·
    neat-backend experiment run --preset fashion-2of10 --strategies neat --vary k=5,10,15,20 ·
    neat-backend experiment run --protocol live --orders random,live --start 0
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise SettingsError(f"--protocol {protocol!r}: must be one of {', '.join(PROTOCOLS)}")
    preset_name = preset_name or DEFAULTS[protocol or Protocol.kind]
    base = preset(preset_name)
    kind = base.protocol.kind
    if protocol not in (None, kind):
        raise SettingsError(f"--protocol {protocol}: preset {preset_name} is of the {kind} protocol; name another")
    if (orders if kind == Protocol.kind else strategies) is not None:
        raise SettingsError(
            "--orders are of the live protocol: add --protocol live, or name --strategies"
            if kind == Protocol.kind
            else "--strategies are of the batch protocol: name --orders, or another --preset"
        )
    conduct = base.protocol.changed(
        dataset=dataset,
        data=None if data is None else str(data.absolute()),
        side=side,
        train_images=train_images,
        test_images=test_images,
        known=known,
        choice=choice,
        initial=initial,
        labels=labels,
        start=start,
        random_share=random_share,
        batch=batch,
        rounds=rounds,
        encoder=encoder,
        classifier=classifier,
        epochs=epochs,
        k=k,
        rule=rule,
        cut=cut,
        target_precision=target_precision,
        components=components,
    )
    named = orders if strategies is None else strategies
    wanted = (
        base.strategies if named is None else _names(named, f"--{'orders' if strategies is None else 'strategies'}")
    )
    numbers = _seeds(seeds) if seeds is not None else base.seeds
    place = out or Settings.from_env().data_dir / "experiments" / preset_name
    made = []
    for folder, one in _varied(place, conduct, vary):
        made.append(_start(folder, Preset(one, wanted, numbers, ""), device, encoder_weights, cache, jobs, as_json))
    if as_json:
        _print(made)


def _names(text: str, option: str = "--strategies") -> tuple[str, ...]:
    """The names of strategies or orders, each once."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise SettingsError(f"{option} names none")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise SettingsError(f"--seeds {text!r}: whole numbers, separated by commas") from None
    if found[0] < 0:
        raise SettingsError(f"--seeds {text!r}: must be 0 or more")
    return found


def _varied(
    place: Path, protocol: Protocol | LiveProtocol, vary: str | None
) -> list[tuple[Path, Protocol | LiveProtocol]]:
    """Folder and protocol of each experiment."""
    if vary is None:
        return [(place, protocol)]
    name, _, values = vary.partition("=")
    texts = [value.strip() for value in values.split(",") if value.strip()]
    if not texts:
        raise SettingsError(f"--vary {vary!r}: NAME=VALUE,VALUE")
    return [
        (place / f"{name}-{text.replace('/', '-').replace(':', '-')}", protocol.varied(name, text)) for text in texts
    ]


def _start(
    folder: Path, what: Preset, device: str | None, weights: Path | None, cache: Path | None, jobs: int, as_json: bool
) -> dict[str, Any]:
    """Run it, and show its table unless that is printed as JSON."""
    from neat_backend.experiments import runner
    from neat_backend.experiments.checkpoints import Plan
    from neat_backend.experiments.forms import table
    from neat_backend.experiments.run_progress import Reporter

    machine = _machine(what.protocol.encoder, device, weights, cache, jobs)
    with Reporter() as report:
        try:
            runner.start(folder, Plan(what.protocol, what.strategies, what.seeds), machine, report)
        except KeyboardInterrupt:
            report.say(f"stopped; `neat-backend experiment resume {folder}` goes on after what is done")
            raise typer.Exit(INTERRUPTED) from None
        report.say(f"results.json and results.csv are in {folder}")
    made = table(None, [folder])
    if not as_json:
        made.show(Console())
    return {"folder": str(folder), **made.as_dict()}


def _print(data: Any) -> None:
    print(json.dumps(data, indent=2))


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Of the experiment that was stopped.")],
    jobs: Jobs = 1,
    device: Device = None,
    encoder_weights: Weights = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Continue experiments that were stopped; the results are those of an uninterrupted run.

    Example: neat-backend experiment resume data/experiments/fashion-quick
    """
    from neat_backend.experiments.checkpoints import find_experiments, read_plan

    made = []
    for place in find_experiments([folder]):
        plan = read_plan(place)
        what = Preset(plan.protocol, plan.strategies, plan.seeds, "")
        made.append(_start(place, what, device, encoder_weights, cache, jobs, as_json))
    if as_json:
        _print(made)


@app.command()
def table(
    folders: Folders = None,
    form: Annotated[
        str | None,
        typer.Option(
            help="strategies, queries, price, encoders, k, batch, classifiers or timings; of the live protocol: live, "
            "served or prefill. Default: strategies, or live."
        ),
    ] = None,
    style: Annotated[str, typer.Option("--format", help="text, markdown, csv or json.")] = "text",
    against: Annotated[str | None, typer.Option(help="Add paired differences from this strategy or order.")] = None,
    strategy: Annotated[str, typer.Option(help="Whose accuracy the tables of encoders, k and batch show.")] = "neat",
    class_seconds: Annotated[float, typer.Option(min=0, help="price: seconds for a label of a class.")] = 3.0,
    none_seconds: Annotated[float, typer.Option(min=0, help="price: seconds for a label none of these.")] = 1.5,
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Print results as a table: mean ± standard deviation over seeds and known classes.

    Examples: neat-backend experiment table data/experiments/fashion-quick --against random ·
    neat-backend experiment table results --form k --format markdown
    """
    from neat_backend.experiments import forms
    from neat_backend.experiments.features import write_atomically

    made = forms.table(
        form,
        _experiments(folders),
        strategy=strategy,
        against=against,
        class_seconds=class_seconds,
        none_seconds=none_seconds,
    )
    style = "json" if as_json else style
    if style == "text" and out is None:
        made.show(Console())
        return
    text = made.as_text(style)
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, lambda file: file.write(text.encode()))


@app.command()
def plot(
    folders: Folders = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    strategies: Annotated[str | None, typer.Option(help="Only these (or orders), separated by commas.")] = None,
    tsne: Annotated[str | None, typer.Option(help="Also show what two strategies chose, as neat,lfosa.")] = None,
    query: Annotated[int, typer.Option(min=1, help="Of which query.")] = 2,
    seed: Annotated[int | None, typer.Option(help="Of which seed; default: the first.")] = None,
    device: Device = None,
    encoder_weights: Weights = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Draw accuracy, precision and recall by query, of live experiments accuracy by label, with bands, as PNG and SVG.

    Examples: neat-backend experiment plot data/experiments/fashion-quick ·
    neat-backend experiment plot data/experiments/fashion-quick --tsne neat,random --query 1
    """
    from neat_backend.experiments import figures
    from neat_backend.experiments.checkpoints import read_plan
    from neat_backend.experiments.choices import draw_choices

    places = _experiments(folders)
    wanted = None if strategies is None else _names(strategies)
    written = []
    for kind, draw in ((Protocol.kind, figures.curves), (LiveProtocol.kind, figures.live_curves)):
        of_kind = [place for place in places if read_plan(place).protocol.kind == kind]
        written += draw(of_kind, out, wanted) if of_kind else []
    if tsne is not None:
        if len(places) != 1:
            raise SettingsError(f"--tsne needs one experiment, these are {len(places)}; name its folder")
        machine = _machine(read_plan(places[0]).protocol.encoder, device, encoder_weights, cache, 1)
        written += draw_choices(places[0], _names(tsne), query, seed, out, machine)
    if as_json:
        _print([str(path) for path in written])
        return
    for path in written:
        print(path)


def _machine(encoder: str, device: str | None, weights: Path | None, cache: Path | None, jobs: int) -> Machine:
    """The machine by the options, else by the settings, whose weights belong to their encoder."""
    from neat_backend.experiments.runner import Machine

    settings = Settings.from_env()
    if weights is None and encoder == settings.encoder:
        weights = settings.encoder_weights
    return Machine(cache or settings.data_dir / "features", device or settings.device, weights, jobs)


@app.command()
def clusterability(
    dataset: Annotated[
        str, typer.Option(help="cifar10, cifar100, tiny-imagenet, fashion-mnist, digits or folder.")
    ] = "digits",
    data: Annotated[Path | None, typer.Option(help="The folder that the data set lies in.")] = None,
    side: Annotated[int, typer.Option(min=8, help="Pixels that a folder's images are scaled to.")] = 224,
    images: Annotated[int, typer.Option(min=20, help="Use at most so many, drawn at random.")] = 5000,
    encoders: Annotated[
        str, typer.Option(help="As NEAT_ENCODER; several, separated by commas.")
    ] = "efficientnet_lite0",
    known: Annotated[int | None, typer.Option(min=1, help="How many classes are known; default: a fifth.")] = None,
    choice: Annotated[str, typer.Option(help="Which: seed, first or class numbers, 0,1.")] = "first",
    k: Annotated[int, typer.Option(min=1, help="K, neighbours looked at.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
    device: Device = None,
    encoder_weights: Weights = None,
    cache: Cache = None,
) -> None:
    """Measure how well an encoder suits a data set, on a labelled sample, before labels are paid for.

    Examples: neat-backend experiment clusterability --dataset digits ·
    neat-backend experiment clusterability --dataset folder --data pictures --encoders resnet18,efficientnet_lite0
    """
    from neat_backend.experiments import suitability
    from neat_backend.experiments.run_progress import Reporter

    sample = suitability.Sample(dataset, data, side, images, known, choice, k, seed)
    with Reporter() as report:
        rows = [
            suitability.of_encoder(encoder, sample, _machine(encoder, device, encoder_weights, cache, 1), report)
            for encoder in _names(encoders)
        ]
    if as_json:
        _print([row.as_dict() for row in rows])
        return
    suitability.as_table(rows).show(Console())
    for row in rows:
        print(row.verdict)


def _experiments(folders: list[Path] | None) -> list[Path]:
    from neat_backend.experiments.checkpoints import find_experiments

    return find_experiments(folders or [Settings.from_env().data_dir / "experiments"])
