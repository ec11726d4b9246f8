"""NEAT for Label Studio: after every annotation, which image is worth labelling next."""

__version__ = "0.2.0"
