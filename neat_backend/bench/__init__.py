"""Benchmarks: `neat-backend bench NAME`. Each compares in one run on one machine and reports ratios.

A figure is worth something beside another of the same run only: machines differ, and so does what else they do.
"""

from __future__ import annotations

import typer

from neat_backend.bench.approximate import approximate
from neat_backend.bench.capacity import capacity
from neat_backend.bench.dashboard import dashboard
from neat_backend.bench.embed import embed
from neat_backend.bench.export import export
from neat_backend.bench.failover import failover
from neat_backend.bench.ingest import ingest
from neat_backend.bench.memory import memory
from neat_backend.bench.paper import paper
from neat_backend.bench.publish import publish
from neat_backend.bench.query import query
from neat_backend.bench.rerank import rerank
from neat_backend.bench.scale import scale
from neat_backend.bench.soak import soak
from neat_backend.bench.train import train

app = typer.Typer(help="Measure speed; ratios against the ordinary way, in the same run.", no_args_is_help=True)
for command in (
    rerank,
    ingest,
    publish,
    embed,
    train,
    memory,
    query,
    export,
    paper,
    dashboard,
    scale,
    approximate,
    capacity,
    failover,
):
    app.command()(command)
app.command()(soak)
