"""The label config: which choices are classes, which one means invalid, where the image is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from neat_backend.errors import BadLabelConfig
from neat_backend.records import EMPTY, NOT_IN_CONFIG, SEVERAL, SKIPPED, UNREADABLE, Annotation, Choice, Label

_EXAMPLE = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image">'
    '<Choice value="dog"/><Choice value="cat"/><Choice value="none of these" invalid="true"/></Choices></View>'
)


WHY = "neat_why"
MAX_CHARACTERS = 1_000_000  # some 10,000 choices
MAX_DEPTH = 100
MOST_NAMED = 4  # tags that a message names, each with its remedy
_PLAIN_KEY = re.compile(r"\$([\w.]|\[\d{1,9}\])+", re.ASCII)  # what the labelling page looks up as a whole
_FROM_TASK = re.compile(r"\$[\w[\].{}]+", re.ASCII)  # what it replaces by the task's data, wherever it stands


@dataclass(frozen=True)
class LabelConfig:
    """The parts of a project's label config that this backend uses.

    Choices are named as Label Studio stores them in results: by alias where there is one, with the blanks that they
    are written with, and a nested one by its leaf.
    """

    control: str  # name of the Choices tag
    to_name: str  # name of the Image tag it labels
    image_key: str  # where the image is in a task's data: "image", or a path such as "photo.url"
    classes: tuple[str, ...]  # in the config's order
    invalid: tuple[str, ...]  # choices that mean "none of the classes"; may be empty
    texts: tuple[str, ...] = ()  # of each class, the text for a text encoder: its hint, else its value
    why: bool = False  # there is a TextArea named WHY on the image: predictions explain themselves there
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # allowNested: from the headings to each leaf

    def name(self, choice: Choice) -> str | None:
        """The class or invalid choice that a result's choice is; None = the config has no such choice."""
        if isinstance(choice, tuple):
            return choice[-1] if self.paths.get(choice[-1]) == choice else None
        return choice if choice in self.classes or choice in self.invalid else None

    def stored(self, name: str) -> str | list[str]:
        """The choice in a result's form, as the labelling page expects it: a nested one by its path."""
        return list(self.paths[name]) if name in self.paths else name


@dataclass(frozen=True)
class _Offered:
    """A choice that the labelling page offers."""

    path: tuple[str, ...]  # as a result holds it, headings first; one part unless nested
    value: str  # as people see it
    text: str
    called: frozenset[str]  # values and aliases of it and its headings, without case and outer blanks
    invalid: bool  # marked, itself or a heading


class _Settings(Protocol):
    @property
    def invalid_choices(self) -> Sequence[str]: ...

    @property
    def control(self) -> str: ...


def read(xml: str, settings: _Settings) -> LabelConfig:
    """`parse` with a project's settings."""
    return parse(xml, settings.invalid_choices, settings.control)


def parse(xml: str, invalid_choices: Sequence[str], control: str = "") -> LabelConfig:
    """Find the single-choice `Choices` on an `Image`: the one named `control`, else the first in the document.

    invalid_choices: names (any case) that mean invalid, where the config marks none with invalid="true".
    Raises BadLabelConfig, in words that say what to change.
    """
    root = _tree(xml)
    tags = list(root.iter())
    images = {_name(tag): tag for tag in tags if _is(tag, "image") and _name(tag)}
    repeated = {id(tag) for repeater in tags if _is(repeater, "repeater") for tag in repeater.iter()}
    chosen = _chosen([tag for tag in tags if _is(tag, "choices") and _name(tag)], images, repeated, control)
    name, to_name = _name(chosen), _image_name(chosen, images)
    nested = _attr(chosen, "allownested").lower() == "true"
    choices = _by_name(list(_offered(chosen, nested)), invalid_choices)
    classes = tuple(leaf for leaf, choice in choices.items() if not choice.invalid)
    if not classes:
        found = "only choices that mean invalid" if choices else "no Choice with a value"
        raise BadLabelConfig(
            f"the Choices tag {_short(name)!r} has {found}; add a Choice for at least one class."
            f" For example: {_EXAMPLE}"
        )
    return LabelConfig(
        control=name,
        to_name=to_name,
        image_key=_attr(images[to_name], "value").removeprefix("$"),
        classes=classes,
        invalid=tuple(leaf for leaf, choice in choices.items() if choice.invalid),
        texts=tuple(choices[leaf].text for leaf in classes),
        why=any(_is(tag, "textarea") and _name(tag) == WHY and _as_written(tag, "toname") == to_name for tag in tags),
        paths={leaf: choice.path for leaf, choice in choices.items()} if nested else {},
    )


def unread(xml: str, config: LabelConfig) -> list[str]:
    """The tags that annotators answer by and that this backend does not read, such as "RectangleLabels 'boxes'"."""
    read = {config.control, WHY}
    controls = [tag for tag in _tree(xml).iter() if _name(tag) and _written(tag, "toname") is not None]
    return [f"{tag.tag} {_short(_name(tag))!r}" for tag in controls if _name(tag) not in read]


def resolve(task: int, annotations: Sequence[Annotation], config: LabelConfig) -> Label:
    """The task's label by all its annotations.

    Each annotator's latest annotation is one vote, the majority wins, and a tie goes to the option that was voted for
    last. Where there is ground truth, only those vote who gave some (Label Studio marks all that is imported as such):
    by their latest annotation too, since that is how they have changed their mind. A skip is a vote for invalid where
    the config has no invalid choice, and no vote where it has one. No vote either: anything but exactly one choice of
    the control, or a choice that the config does not have. An annotation without an annotator counts as an annotator
    of its own. A task with annotations but without a vote is set aside, and the latest annotation says why: Label
    Studio does not serve it again to an annotator who answered, so it must not block other tasks.
    """
    latest: dict[tuple[str, int], Annotation] = {}
    trusted: set[tuple[str, int]] = set()
    for annotation in sorted(annotations, key=_moment):
        who = ("nobody", annotation.id) if annotation.annotator is None else ("user", annotation.annotator)
        latest[who] = annotation
        if annotation.ground_truth:
            trusted.add(who)
    votes = {who: _vote(task, annotation, config) for who, annotation in latest.items()}
    by_time = sorted(latest, key=lambda who: _moment(latest[who]))
    for voters in (trusted, latest.keys()):
        cast = [votes[who] for who in by_time if who in voters and not votes[who].set_aside]
        if cast:
            counts = Counter(cast)
            return next(vote for vote in reversed(cast) if counts[vote] == max(counts.values()))
    return votes[by_time[-1]] if by_time else Label(task)


def label_of(choices: Mapping[str, tuple[Choice, ...] | None], was_cancelled: bool, config: LabelConfig) -> Label:
    """The label by one annotation of this content, of task 0."""
    return _vote(0, Annotation(0, 0, None, choices, was_cancelled, False, datetime.min), config)


def _moment(annotation: Annotation) -> tuple[datetime, int]:
    return annotation.updated_at, annotation.id


def _vote(task: int, annotation: Annotation, config: LabelConfig) -> Label:
    """One annotation's vote: a label, or why there is none."""
    if annotation.was_cancelled:
        return Label(task, set_aside=SKIPPED) if config.invalid else Label(task, invalid=True)
    choices = annotation.choices.get(config.control, ())
    if choices is None or (not choices and annotation.choices.get("", ()) is None):
        return Label(task, set_aside=UNREADABLE)
    picked = _leaves(choices)
    if len(picked) != 1:
        return Label(task, set_aside=SEVERAL if picked else EMPTY)
    name = config.name(picked[0])
    if name is None:
        return Label(task, set_aside=NOT_IN_CONFIG, answer=_shown(picked[0]))
    return Label(task, invalid=True) if name in config.invalid else Label(task, choice=name)


def _shown(choice: Choice) -> str:
    """A choice for people to read, with characters that every page and terminal can show."""
    text = choice if isinstance(choice, str) else " / ".join(choice)
    return _short(text).encode("utf-8", "replace").decode()


def _leaves(choices: Sequence[Choice]) -> list[Choice]:
    """Each choice once, without those on the way to others: a click on a heading stores it with all that is below."""
    paths = {choice: (choice,) if isinstance(choice, str) else choice for choice in choices}
    headings = {path[:depth] for path in paths.values() for depth in range(1, len(path))}
    return [choice for choice, path in paths.items() if path not in headings]


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


def _offered(parent: Element, nested: bool, under: _Offered | None = None) -> Iterator[_Offered]:
    """Each choice that the labelling page offers below the tag.

    Nested ones are offered only with allowNested, and then the leaves are what is picked. Without it the page offers
    the headings alone.
    """
    for child in parent:
        if not _is(child, "choice"):
            yield from _offered(child, nested, under)  # layout, such as a View
            continue
        choice = _choice(child, under)
        if nested and any(_is(tag, "choice") for tag in child.iter() if tag is not child):
            yield from _offered(child, nested, choice)
        elif choice.path[-1]:
            yield choice


def _choice(tag: Element, under: _Offered | None) -> _Offered:
    """The Choice tag, below the heading `under` if it has one. Raises BadLabelConfig for what no answer can match."""
    value, alias = _as_written(tag, "value"), _written(tag, "alias")
    shown = f"the Choice {_short(value)!r}"
    marked = _attr(tag, "invalid").lower()
    if marked not in ("true", "false") and _written(tag, "invalid") is not None:
        raise BadLabelConfig(f'{shown} has invalid="{_short(marked)}"; write invalid="true", or leave it out')
    if not len(tag) and (tag.text or "").strip():
        raise BadLabelConfig(f"{shown} has a text, which the labelling page takes for its value; remove the text")
    if alias == "":
        raise BadLabelConfig(f'{shown} has alias="", so its answers would be empty; remove the alias')
    if alias is None and (found := _FROM_TASK.search(value)):
        raise BadLabelConfig(
            f"{shown} takes {_short(found[0])!r} from each task's data; give it an alias, or write it without the $"
        )
    stored = value if alias is None else alias
    return _Offered(
        path=(*(under.path if under else ()), stored),
        value=value,
        text=_attr(tag, "hint") or value.strip(),
        called=frozenset((_plain(value), _plain(stored))) | (under.called if under else frozenset()),
        invalid=marked == "true" or (under is not None and under.invalid),
    )


def _by_name(choices: Sequence[_Offered], invalid_choices: Sequence[str]) -> dict[str, _Offered]:
    """The choices by name, those that mean invalid marked. Raises BadLabelConfig for an ambiguous name."""
    if not any(choice.invalid for choice in choices):
        named = {_plain(choice) for choice in invalid_choices}
        choices = [replace(choice, invalid=not choice.called.isdisjoint(named)) for choice in choices]
    found: dict[str, _Offered] = {}
    for choice in choices:
        first = found.setdefault(choice.path[-1], choice)
        if first.path != choice.path:
            both = " and ".join(repr(_short(" / ".join(one.path))) for one in (first, choice))
            raise BadLabelConfig(f"two choices are called {_short(choice.path[-1])!r} ({both}); give one an alias")
        if first.invalid != choice.invalid:
            both = " and ".join(repr(_short(one.value)) for one in (first, choice))
            raise BadLabelConfig(
                f"the choices {both} are both stored as {_short(choice.path[-1])!r}, and one of them means invalid;"
                " give them different aliases"
            )
    return found


def _chosen(
    controls: Sequence[Element], images: Mapping[str, Element], repeated: Collection[int], control: str
) -> Element:
    """The Choices tag to use: the one named `control`, else the first that can be used. Raises BadLabelConfig."""
    if not control:
        chosen = next((tag for tag in controls if not _unsuitable(tag, images, repeated)), None)
        if chosen is None:
            raise BadLabelConfig(_nothing_suitable(controls, images, repeated))
        return chosen
    chosen = next((tag for tag in controls if _name(tag) == control), None)
    chosen = chosen if chosen is not None else next((tag for tag in controls if _name(tag).strip() == control), None)
    if chosen is None:
        names = ", ".join(_name(tag) for tag in controls) or "none"
        raise BadLabelConfig(
            f"the label config has no Choices tag named {_short(control)!r} (it has: {_short(names)}); "
            "correct the control setting (NEAT_CONTROL, or “control” in the connection's extra params)"
        )
    problem = _unsuitable(chosen, images, repeated)
    if problem:
        raise BadLabelConfig(f"the Choices tag {_short(control)!r} can't be used: {problem}")
    return chosen


def _unsuitable(control: Element, images: Mapping[str, Element], repeated: Collection[int]) -> str:
    """Why this Choices tag can't be used, with the remedy; empty = it can."""
    image = _image_name(control, images)
    if not image:
        return (
            f"it labels {_short(_attr(control, 'toname'))!r}, which is not an Image tag with a value such as "
            'value="$image"; point its toName at one'
        )
    if id(control) in repeated or id(images[image]) in repeated:
        return "it is in a Repeater, which makes several of it for a task; a task needs one Image and one Choices tag"
    key = _attr(images[image], "value")
    if not _PLAIN_KEY.fullmatch(key):
        return (
            f'its Image tag {_short(image)!r} has value="{_short(key)}", which is not the key of a task\'s data; write'
            ' it as value="$image", or "$photos[0].url", in letters without accents, digits and _'
        )
    dynamic = _attr(control, "value")
    if dynamic:
        return (
            f'value="{_short(dynamic)}" takes its choices from each task, so there is no list of classes; '
            "write a Choice tag for each class and remove it"
        )
    choice = _attr(control, "choice").lower()
    if choice not in ("", "single", "single-radio"):
        return f'it allows several choices (choice="{_short(choice)}"); set choice="single"'
    for name in ("perRegion", "perItem"):
        if _attr(control, name.lower()).lower() == "true":
            return f"it labels {name.removeprefix('per').lower()}s, not the whole image; remove {name}"
    return ""


def _nothing_suitable(controls: Sequence[Element], images: Mapping[str, Element], repeated: Collection[int]) -> str:
    if not images:
        problem = "it has no Image tag"
    elif not controls:
        problem = "it has no Choices tag"
    else:
        problem = "; ".join(
            f"{_short(_name(tag))!r}: {_unsuitable(tag, images, repeated)}" for tag in controls[:MOST_NAMED]
        ) + ("; …" if len(controls) > MOST_NAMED else "")
    return f"the label config has no single-choice Choices tag on an Image ({problem}). For example: {_EXAMPLE}"


def _image_name(control: Element, images: Mapping[str, Element]) -> str:
    for part in _as_written(control, "toname").split(","):
        for name in (part, part.strip()):
            if name in images and _attr(images[name], "value").startswith("$"):
                return name
    return ""


def _is(tag: Element, name: str) -> bool:
    return isinstance(tag.tag, str) and tag.tag.lower() == name


def _name(tag: Element) -> str:
    """The tag's name in results."""
    return _as_written(tag, "name")


def _written(tag: Element, name: str) -> str | None:
    """An attribute, ignoring case as Label Studio's interface does; None = missing."""
    return next((value for key, value in tag.attrib.items() if key.lower() == name), None)


def _as_written(tag: Element, name: str) -> str:
    """An attribute with the blanks at its ends, which Label Studio keeps; "" = it has none."""
    return _written(tag, name) or ""


def _attr(tag: Element, name: str) -> str:
    """An attribute without blanks at its ends, for one that is not compared."""
    return _as_written(tag, name).strip()


def _plain(name: str) -> str:
    """A name normalised for the comparison with those that mean invalid."""
    return name.strip().casefold()


def _short(text: str) -> str:
    """A user's text, shortened for a message."""
    return text if len(text) <= 200 else f"{text[:200]}…"
