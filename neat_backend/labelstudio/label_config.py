"""The label config: which choices are classes, which one means invalid, where the image is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from neat_backend.errors import BadLabelConfig
from neat_backend.records import Annotation, Label

_EXAMPLE = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image">'
    '<Choice value="dog"/><Choice value="cat"/><Choice value="none of these" invalid="true"/></Choices></View>'
)


WHY = "neat_why"
MAX_CHARACTERS = 1_000_000  # some 10,000 choices
MAX_DEPTH = 100
MOST_NAMED = 4  # tags that a complaint names, each with its remedy


@dataclass(frozen=True)
class LabelConfig:
    """What this backend needs of a project's label config.

    Choices are named as Label Studio stores them in results: by alias where there is one.
    """

    control: str  # name of the Choices tag
    to_name: str  # name of the Image tag it labels
    image_key: str  # where the image is in a task's data: "image", or a path such as "photo.url"
    classes: tuple[str, ...]  # in the config's order
    invalid: tuple[str, ...]  # choices that mean "none of the classes"; may be empty
    texts: tuple[str, ...] = ()  # of each class, what tells an encoder of text what it is: its hint, else its value
    why: bool = False  # there is a TextArea named WHY on the image: predictions say there what they come from


def parse(xml: str, invalid_choices: Sequence[str], control: str = "") -> LabelConfig:
    """Find the single-choice `Choices` on an `Image`: the one named `control`, else the first in the document.

    invalid_choices: names (any case) that mean invalid, where the config marks none with invalid="true".
    Raises BadLabelConfig, in words that say what to change.
    """
    root = _tree(xml)
    tags = list(root.iter())
    images = {_attr(tag, "name"): tag for tag in tags if _is(tag, "image") and _attr(tag, "name")}
    controls = [tag for tag in tags if _is(tag, "choices") and _attr(tag, "name")]
    if control:
        chosen = next((tag for tag in controls if _attr(tag, "name") == control), None)
        if chosen is None:
            names = ", ".join(_attr(tag, "name") for tag in controls) or "none"
            raise BadLabelConfig(
                f"the label config has no Choices tag named {_short(control)!r} (it has: {_short(names)}); "
                "correct the control setting (NEAT_CONTROL, or “control” in the connection's extra params)"
            )
        problem = _unsuitable(chosen, images)
        if problem:
            raise BadLabelConfig(f"the Choices tag {_short(control)!r} can't be used: {problem}")
    else:
        chosen = next((tag for tag in controls if not _unsuitable(tag, images)), None)
        if chosen is None:
            raise BadLabelConfig(_nothing_suitable(controls, images))

    name, to_name = _attr(chosen, "name"), _image_name(chosen, images)
    choices = list(_choices(chosen))
    marked = dict.fromkeys(value for value, is_invalid in choices if is_invalid)
    if not marked:
        named = {choice.strip().casefold() for choice in invalid_choices}
        marked = dict.fromkeys(value for value, _ in choices if value.strip().casefold() in named)
    classes = [value for value, _ in choices if value not in marked]
    if not classes:
        found = "only choices that mean invalid" if marked else "no Choice with a value"
        raise BadLabelConfig(
            f"the Choices tag {_short(name)!r} has {found}; add a Choice for at least one class."
            f" For example: {_EXAMPLE}"
        )
    return LabelConfig(
        control=name,
        to_name=to_name,
        image_key=_attr(images[to_name], "value").lstrip("$"),
        classes=tuple(dict.fromkeys(classes)),
        invalid=tuple(marked),
        texts=tuple(_texts(chosen, tuple(dict.fromkeys(classes)))),
        why=any(_is(tag, "textarea") and _attr(tag, "name") == WHY and _attr(tag, "toname") == to_name for tag in tags),
    )


def resolve(task: int, annotations: Sequence[Annotation], config: LabelConfig) -> Label:
    """The task's label, all its annotations considered.

    Ground truth first (the latest). Else each annotator's latest annotation is one vote, the majority
    wins, and a tie goes to the option that was voted for last. A skip is a vote for invalid where the
    config has no invalid choice, and no vote where it has one. No vote either: anything but exactly one
    choice of the control, or a choice that the config no longer has. An annotation without an annotator
    counts as an annotator of its own. A task with annotations but without a vote is set aside: Label Studio
    does not serve it again to whoever answered, so it must not stand in the way of others.
    """
    in_order = sorted(annotations, key=lambda annotation: (annotation.updated_at, annotation.id))
    latest: dict[tuple[str, int], Annotation] = {}
    truth: Label | None = None
    for annotation in in_order:
        who = ("nobody", annotation.id) if annotation.annotator is None else ("user", annotation.annotator)
        latest[who] = annotation
        if annotation.ground_truth:
            truth = _vote(task, annotation, config) or truth
    if truth is not None:
        return truth

    voters = sorted(latest.values(), key=lambda annotation: (annotation.updated_at, annotation.id))
    votes = [vote for vote in (_vote(task, annotation, config) for annotation in voters) if vote is not None]
    if not votes:
        return Label(task, set_aside=bool(annotations))
    counts = Counter(votes)
    most = max(counts.values())
    return next(vote for vote in reversed(votes) if counts[vote] == most)


def _vote(task: int, annotation: Annotation, config: LabelConfig) -> Label | None:
    if annotation.was_cancelled:
        return None if config.invalid else Label(task, invalid=True)
    choices = annotation.choices.get(config.control, ())
    if len(choices) != 1:
        return None
    if choices[0] in config.invalid:
        return Label(task, invalid=True)
    return Label(task, choice=choices[0]) if choices[0] in config.classes else None


def _tree(xml: str) -> Element:
    if not isinstance(xml, str) or not xml.strip():
        raise BadLabelConfig(f"the label config is empty; set one in the project's settings. For example: {_EXAMPLE}")
    if len(xml) > MAX_CHARACTERS:
        raise BadLabelConfig(f"the label config has more than {MAX_CHARACTERS:,} characters; shorten it")
    try:
        root: Element = fromstring(xml.strip(), forbid_dtd=True)
    except DefusedXmlException:
        raise BadLabelConfig("the label config has a DOCTYPE or entities, which are refused; remove them") from None
    except (ParseError, ValueError) as error:
        raise BadLabelConfig(f"the label config is not XML ({error}); correct it in the project's settings") from None
    level, depth = [root], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadLabelConfig(f"the label config's tags are nested more than {MAX_DEPTH} deep; flatten it")
        level = [child for tag in level for child in tag]
    return root


def _choices(control: Element, inherited: bool = False) -> Iterator[tuple[str, bool]]:
    """Each choice that an annotator can pick, with whether it is marked invalid.

    A Choice that holds others is a heading: what can be picked are its leaves, which inherit the mark.
    """
    for child in control:
        marked = inherited or _attr(child, "invalid").lower() == "true"
        if not _is(child, "choice"):
            yield from _choices(child, inherited)  # layout, such as a View
        elif any(_is(tag, "choice") for tag in child.iter() if tag is not child):
            yield from _choices(child, marked)
        else:
            value = _attr(child, "alias") or _attr(child, "value")
            if value:
                yield value, marked


def _texts(control: Element, classes: Sequence[str]) -> Iterator[str]:
    """For each class, the hint of its choice, else its value, which may say more than its alias."""
    told: dict[str, str] = {}
    for tag in control.iter():
        if _is(tag, "choice") and _attr(tag, "value"):
            told.setdefault(_attr(tag, "alias") or _attr(tag, "value"), _attr(tag, "hint") or _attr(tag, "value"))
    return (told.get(name, name) for name in classes)


def _unsuitable(control: Element, images: dict[str, Element]) -> str:
    """Why this Choices tag can't be used, with the remedy; empty = it can."""
    if not _image_name(control, images):
        return (
            f"it labels {_short(_attr(control, 'toname'))!r}, which is not an Image tag with a value such as "
            'value="$image"; point its toName at one'
        )
    choice = _attr(control, "choice").lower()
    if choice not in ("", "single", "single-radio"):
        return f'it allows several choices (choice="{_short(choice)}"); set choice="single"'
    if _attr(control, "perregion").lower() == "true":
        return "it labels regions, not the whole image; remove perRegion"
    return ""


def _nothing_suitable(controls: list[Element], images: dict[str, Element]) -> str:
    if not images:
        problem = "it has no Image tag"
    elif not controls:
        problem = "it has no Choices tag"
    else:
        problem = "; ".join(
            f"{_short(_attr(tag, 'name'))!r}: {_unsuitable(tag, images)}" for tag in controls[:MOST_NAMED]
        ) + ("; …" if len(controls) > MOST_NAMED else "")
    return f"the label config has no single-choice Choices tag on an Image ({problem}). For example: {_EXAMPLE}"


def _image_name(control: Element, images: dict[str, Element]) -> str:
    for name in _attr(control, "toname").split(","):
        tag = images.get(name.strip())
        if tag is not None and re.fullmatch(r"\$[^$]+", _attr(tag, "value")):
            return name.strip()
    return ""


def _is(tag: Element, name: str) -> bool:
    return isinstance(tag.tag, str) and tag.tag.lower() == name


def _attr(tag: Element, name: str) -> str:
    """An attribute, whatever its case: Label Studio's interface ignores case too."""
    return next((value for key, value in tag.attrib.items() if key.lower() == name), "").strip()


def _short(text: str) -> str:
    """Somebody's text inside a message for people."""
    return text if len(text) <= 200 else f"{text[:200]}…"
