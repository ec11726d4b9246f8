"""`python -m benchmarks NAME`, in a clone of the repository."""

from benchmarks import app
from neat_backend.cli import main

main(app)
