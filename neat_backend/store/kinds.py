"""Names of the kinds of arrays that a project has."""

FEATURES, IMAGES, PROBABILITIES = "features", "images", "probabilities"


def features_kind(encoder_key: str) -> str:
    """Features by one encoder."""
    return f"{FEATURES}/{encoder_key}"


def thumbnails_kind(side: int) -> str:
    """Images as the classifier takes them, `side` pixels wide and high."""
    return f"{IMAGES}/{side}"


def probabilities_kind(round: int) -> str:
    """The class probabilities that a round gave."""
    return f"{PROBABILITIES}/{round:06d}"
