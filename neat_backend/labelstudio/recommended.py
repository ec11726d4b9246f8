"""The label config that this backend recommends: the choices beside the image, all in sight, each with its key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from neat_backend.errors import BadLabelConfig
from neat_backend.labelstudio.label_config import parse

NONE_OF_THESE = "None of these"
INVALID_KEY = "0"
# Of the classes, in order. Label Studio's own actions have other keys; classes beyond these have none.
KEYS = "123456789qwertyuiopasdfghjklzxcvbnm"


def recommended_config(classes: Sequence[str], invalid: str = NONE_OF_THESE) -> str:
    """The label config, as XML, for these classes and a choice that means "none of them".

    Its tags are named `image` and `class`, and the image is the task's `image`. Raises BadLabelConfig for a name that
    is empty, comes twice or can't be a choice.
    """
    names = [*classes, invalid]
    if not classes:
        raise BadLabelConfig("there is no class; name at least one")
    if any(not name.strip() for name in names):
        raise BadLabelConfig("a class, or the choice that means none of them, has an empty name; name it")
    twice = sorted(name for name, count in Counter(name.strip().casefold() for name in names).items() if count > 1)
    if twice:
        raise BadLabelConfig(f"two choices are called {twice[0]!r}; give each a name of its own")
    lines = [_choice(name, key) for name, key in zip(classes, KEYS, strict=False)]
    lines += [_choice(name, "") for name in classes[len(KEYS) :]]
    lines.append(_choice(invalid, INVALID_KEY, ' invalid="true"'))
    xml = (
        '<View style="display: flex; gap: 24px; align-items: flex-start">\n'
        '  <View style="flex: 0 0 220px">\n'
        '    <Choices name="class" toName="image" choice="single" layout="vertical">\n'
        + "".join(f"      {line}\n" for line in lines)
        + "    </Choices>\n"
        "  </View>\n"
        '  <View style="flex: 1 1 auto; min-width: 0">\n'
        '    <Image name="image" value="$image" maxHeight="70vh"/>\n'
        "  </View>\n"
        "</View>"
    )
    parse(xml, ())  # raises for a name with another meaning in Label Studio
    return xml


def _choice(name: str, key: str, more: str = "") -> str:
    hotkey = f" hotkey={quoteattr(key)}" if key else ""
    return f"<Choice value={quoteattr(name)}{hotkey}{more}/>"
