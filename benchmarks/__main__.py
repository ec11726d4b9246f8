"""`python -m benchmarks NAME`, in a clone of the repository."""

from benchmarks.commands import app
from neat_backend.cli import main

main(app)
