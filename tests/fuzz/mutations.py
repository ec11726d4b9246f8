"""JSON as a sender with a grudge, a bug or a broken line would write it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

_RAW = "@raw:{}@"  # stands for text that Python can't hold or would not write


def raw(text: str) -> str:
    return _RAW.format(text)


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**40,
    0.5,
    -0.0,
    1e308,
    raw("1e999"),
    raw("-1e999"),
    raw("NaN"),
    raw("Infinity"),
    raw("1" * 5000),
    raw("1e-99999"),
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff\ud800",
    "\u202egpj",
    "\ufeff",
    "é\u0301" * 20,
    "😀" * 50,
    "x" * 70_000,
    "1",
    "1.5",
    "-1",
    "0x10",
    "１",
    "٣",
    "1" * 30,
    "NaN",
    "null",
    "1.1795417238",
    "9" * 18 + ".1",
    "7.",
    ".7",
    "2026-11-23T07:00:56Z",
    "9999-12-31T23:59:59.999999-14:00",
    "0001-01-01T00:00:00+14:00",
    "2026-02-30",
    "now",
    "2026-11-23T07:00:56." + "9" * 400 + "Z",
    "10000-01-01T00:00:00Z",
    "2026-11-23T07:00:56+99:99",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"id": None},
    {"id": 1},
    {"id": "1"},
    {"": ""},
    [1, "1", None],
    "data:image/png;base64,AAAA",
    "/../../etc/passwd",
    "file:///etc/passwd",
    "http://[::1",
    "s3://" + "b" * 3000,
    "<View/>",
    "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
    "SELECT 1; --",
    "%s%n{}${x}",
)


def mutate(rng: Random, body: Any, times: int | None = None) -> Any:
    """The body with one to four things wrong with it (most often one)."""
    body = copy.deepcopy(body)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 4))):
        places = list(_places(body))
        if not places:
            return copy.deepcopy(rng.choice(ODD))
        container, key = rng.choice(places)
        rng.choice(_CHANGES)(rng, container, key)
    return body


def text_of(rng: Random, body: Any) -> bytes:
    """The body as it goes over the wire: mostly JSON, sometimes damaged."""
    text = json.dumps(body, ensure_ascii=rng.random() < 0.7)
    text = re.sub(r'"@raw:(.*?)@"', lambda match: match[1], text)
    text = re.sub(r'"@deep:(\d+)@"', lambda match: "[" * int(match[1]) + "]" * int(match[1]), text)
    text = re.sub(r'"@objects:(\d+)@"', lambda match: '{"a":' * int(match[1]) + "1" + "}" * int(match[1]), text)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.92:
        return data
    return rng.choice(_DAMAGES)(rng, data)


def _places(value: Any) -> Any:
    """(container, key or index) of everything in it."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, inner in list(items):
            yield one, key
            if isinstance(inner, dict | list):
                waiting.append(inner)


def _retype(rng: Random, container: Any, key: Any) -> None:
    container[key] = copy.deepcopy(rng.choice(ODD))


def _drop(rng: Random, container: Any, key: Any) -> None:
    del container[key]


def _repeat(rng: Random, container: Any, key: Any) -> None:
    """A list's item again and again; an object's field as a list of it."""
    if isinstance(container, list):
        container += [copy.deepcopy(container[key]) for _ in range(rng.choice((1, 2, 200)))]
    else:
        container[key] = [copy.deepcopy(container[key]) for _ in range(rng.choice((0, 1, 2, 50)))]


def _wrap(rng: Random, container: Any, key: Any) -> None:
    for _ in range(rng.choice((1, 2, 30, 120))):
        container[key] = [container[key]] if rng.random() < 0.5 else {rng.choice(("id", "data", "a")): container[key]}


def _deep(rng: Random, container: Any, key: Any) -> None:
    container[key] = f"@{rng.choice(('deep', 'objects'))}:{rng.choice((90, 101, 900, 3000, 100_000))}@"


def _rename(rng: Random, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        container[rng.choice(("", "id", "tasks", "annotations", "\0", key.upper(), key + "s"))] = container.pop(key)


def _swap(rng: Random, container: Any, key: Any) -> None:
    others = list(container) if isinstance(container, dict) else list(range(len(container)))
    other = rng.choice(others)
    container[key], container[other] = container[other], container[key]


def _add(rng: Random, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        for number in range(rng.choice((1, 3, 2000))):
            container[f"extra{number}"] = copy.deepcopy(rng.choice(ODD))
    else:
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(rng.choice(ODD)))


def _shift(rng: Random, container: Any, key: Any) -> None:
    """A number that is a little, or very much, another; a text with something in the middle."""
    value = container[key]
    if isinstance(value, int) and not isinstance(value, bool):
        container[key] = value + rng.choice((-1, 1, 2, 2**31, 2**62, 2**63, -(2**40)))
    elif isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        container[key] = value[:at] + rng.choice(("\0", "\ud800", "é", "\n", "<", '"', "\u2028", "")) + value[at + 1 :]
    else:
        _retype(rng, container, key)


_CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (
    _retype,
    _retype,
    _retype,
    _drop,
    _repeat,
    _wrap,
    _deep,
    _rename,
    _swap,
    _add,
    _shift,
    _shift,
    _shift,
)


def _flip(rng: Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


_DAMAGES: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip,
    lambda rng, data: data[: rng.randrange(len(data) + 1)],
    lambda rng, data: data[:-1] + b',"action":"TASKS_DELETED"}',  # a key twice
    lambda rng, data: data + data,
    lambda rng, data: b"\xef\xbb\xbf" + data,
    lambda rng, data: data.decode("utf-8", "replace").encode("utf-16"),
    lambda rng, data: data.decode("utf-8", "replace").encode("latin-1", "replace"),
    lambda rng, data: b"",
    lambda rng, data: b"\0" * 100,
    lambda rng, data: b"[" * 200_000,
)
