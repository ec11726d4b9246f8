"""NEAT's known-class detection alone, "NEAT (passive)" in the paper: B of the candidates at random.

The authors' code instead takes the B candidates with most known neighbours.
"""

from __future__ import annotations

from neat_backend.strategies import random
from neat_backend.strategies.detection import after_detection

select = after_detection(random.select)
