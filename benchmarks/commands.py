"""The commands of `python -m benchmarks`."""

from __future__ import annotations

import typer

from benchmarks.approximate import approximate
from benchmarks.backlog import backlog
from benchmarks.capacity import capacity
from benchmarks.dashboard import dashboard
from benchmarks.embed import embed
from benchmarks.encode import encode
from benchmarks.estimates import estimates
from benchmarks.export import export
from benchmarks.failover import failover
from benchmarks.first_order import first_order
from benchmarks.gpu import gpu
from benchmarks.heads import heads
from benchmarks.idle import idle
from benchmarks.ingest import ingest
from benchmarks.memory import memory
from benchmarks.mistakes import mistakes
from benchmarks.paper import paper
from benchmarks.plan import plan
from benchmarks.publish import publish
from benchmarks.query import query
from benchmarks.rerank import rerank
from benchmarks.scale import scale
from benchmarks.session import session
from benchmarks.soak import soak
from benchmarks.startup import startup
from benchmarks.train import train

app = typer.Typer(help="Measure speed; ratios against the ordinary way, in the same run.", no_args_is_help=True)
for command in (
    rerank,
    ingest,
    backlog,
    publish,
    embed,
    encode,
    train,
    memory,
    query,
    plan,
    export,
    paper,
    dashboard,
    scale,
    approximate,
    mistakes,
    estimates,
    capacity,
    failover,
    startup,
    session,
    idle,
    gpu,
    first_order,
    heads,
):
    app.command()(command)
app.command()(soak)
