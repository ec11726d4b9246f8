"""Label configs: XML that is broken, hostile or absurdly large must end in a LabelConfig or a BadLabelConfig."""

from __future__ import annotations

import time
from collections.abc import Iterator
from random import Random

from neat_backend.errors import BadLabelConfig
from neat_backend.labelstudio import label_config
from neat_backend.settings import Settings
from tests.fuzz.tally import Tally, tracebacks
from tests.serving import CONFIG

AT_LEAST = 400  # mutations, however slow the machine is
_IMAGE = '<Image name="image" value="$image"/>'
GOOD = (
    CONFIG,
    f'<View>{_IMAGE}<Choices name="c" toName="image"><Choice value="a"><Choice value="b" alias="B"/></Choice>'
    '<Choice value="Not one of these" invalid="true"/></Choices></View>',
    f'<View><Header value="é&amp;&#233;"/>{_IMAGE}<!-- a --><Choices name="c" toName="image,other" choice="multiple"/>'
    '<Choices name="d" toname="image" choice="single-radio"><View><Choice value="x"/></View></Choices></View>',
)
_PIECES = (
    "<",
    ">",
    "/>",
    "</View>",
    '"',
    "'",
    "&",
    "&#0;",
    "&#xD800;",
    "&lol;",
    "&amp;",
    "<![CDATA[",
    "]]>",
    "<!--",
    "-->",
    "<?xml version='1.0' encoding='utf-7'?>",
    "<?pi?>",
    "\0",
    "\ud800",
    "\ufeff",
    "😀",
    "<Choices",
    'name="class"',
    'invalid="true"',
    'choice="multiple"',
    'perRegion="true"',
    'value="$image"',
    'xmlns="urn:a"',
    "xmlns:x='http://a'",
    '<xi:include href="file:///etc/passwd"/>',
    "<!DOCTYPE View>",
    "$",
    "$$",
    "[0]",
    "\t\r\n",
)


def hostile() -> Iterator[str]:
    """What attacks on XML readers look like, each once."""
    levels = "".join(f'<!ENTITY l{n} "' + f"&l{n - 1};" * 10 + '">' for n in range(1, 10))
    yield f'<!DOCTYPE a [<!ENTITY l0 "lol">{levels}]><View>&l9;</View>'
    yield '<!DOCTYPE a [<!ENTITY big "' + "x" * 100_000 + '">]><View>' + "&big;" * 10_000 + "</View>"
    yield '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>'
    yield '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:1/x.dtd"> %x;]><View/>'
    yield '<!DOCTYPE View SYSTEM "http://127.0.0.1:1/x.dtd"><View/>'
    yield "<a>" * 140_000
    yield "<a>" * 140_000 + "</a>" * 100
    yield "<View>" * 70_000 + "</View>" * 70_000
    yield f"<View>{'<Choice>' * 99}{'</Choice>' * 99}</View>"
    yield '<View a="' + "x" * 990_000 + f'">{_IMAGE}</View>'
    yield "<View " + " ".join(f'a{n}=""' for n in range(100_000)) + "/>"
    yield f"<View>{'<!-- a -->' * 90_000}</View>"
    yield f"<View>{'&amp;' * 190_000}</View>"
    yield "x" * 1_000_001
    for mark in ("", ' invalid="true"'):
        many = "".join(f'<Choice value="{n}"{mark if n % 2 else ""}/>' for n in range(25_000))
        yield f'<View>{_IMAGE}<Choices name="c" toName="image">{many}</Choices></View>'
    yield f"<View>{_IMAGE}" + "".join(f'<Choices name="c{n}" toName="nothing"/>' for n in range(20_000)) + "</View>"
    yield f'<View>{_IMAGE}<Choices name="c" toName="' + "a," * 450_000 + '"/></View>'
    nested = '<Choice value="a">' * 90 + '<Choice value="b"/>' * 20_000 + "</Choice>" * 90
    yield f'<View>{_IMAGE}<Choices name="c" toName="image">{nested}</Choices></View>'
    yield "<View>" + "".join(f'<Image name="i{n}" value="$i"/>' for n in range(25_000)) + "</View>"


def mutated(rng: Random) -> str:
    xml = rng.choice(GOOD)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, until = sorted((rng.randrange(len(xml) + 1), rng.randrange(len(xml) + 1)))
        change = rng.randrange(5)
        if change == 0:
            xml = xml[:at] + rng.choice(_PIECES) + xml[at:]
        elif change == 1:
            xml = xml[:at] + xml[min(until, at + 30) :]
        elif change == 2:
            xml = xml[:at] + xml[at:until] * rng.choice((2, 3, 100)) + xml[until:]
        elif change == 3:
            xml = xml[:at] + chr(rng.choice((rng.randrange(128), rng.randrange(0x11000)))) + xml[at + 1 :]
        else:
            xml = xml[:at] + rng.choice(_PIECES) * rng.choice((1, 2, 50)) + xml[min(until, at + 30) :]
        xml = xml[:200_000]
    return xml


def fuzz(tally: Tally, seed: int, seconds: float) -> None:
    """`hostile()` once, then mutations until the time is over, some hundred at least."""
    rng, until, left = Random(seed), time.monotonic() + seconds, AT_LEAST
    choices = Settings.from_env({}).invalid_choices
    waiting = list(hostile())
    with tracebacks(tally, "label configs"):
        while waiting or left > 0 or time.monotonic() < until:
            left -= not waiting
            xml = waiting.pop() if waiting else mutated(rng)
            control = rng.choice(("", "", "", "c", "class", "\0"))
            try:
                tally.timed("label configs", lambda xml=xml: xml, lambda: label_config.parse(xml, choices, control))  # noqa: B023
            except BadLabelConfig as error:
                tally.count("label configs", "refused")
                if len(str(error)) > 2000:
                    tally.fail(f"label configs: {len(str(error)):,} characters of complaint about {xml:.200}")
            except Exception as error:
                tally.fail(f"label configs: {type(error).__name__}: {error} for {xml!r:.500}")
            else:
                tally.count("label configs", "usable")
