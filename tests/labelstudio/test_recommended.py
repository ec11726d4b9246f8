from __future__ import annotations

import string

import pytest

from neat_backend.errors import BadLabelConfig
from neat_backend.labelstudio.label_config import parse
from neat_backend.labelstudio.recommended import KEYS, recommended_config


def test_the_classes_and_what_means_none_of_them_are_read_back():
    found = parse(recommended_config(["dog", "cat & <friend>", 'a "quote"'], "Something else"), ())
    assert found.classes == ("dog", "cat & <friend>", 'a "quote"')
    assert found.invalid == ("Something else",)
    assert (found.control, found.to_name, found.image_key) == ("class", "image", "image")


def test_each_choice_has_a_key_of_its_own_as_far_as_there_are_any():
    xml = recommended_config([f"class {number}" for number in range(40)])
    keys = [part[0] for part in xml.split('hotkey="')[1:]]
    assert keys == [*KEYS, "0"]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(string.digits + string.ascii_lowercase)
    assert parse(xml, ()).classes[-1] == "class 39"


@pytest.mark.parametrize(
    ("classes", "invalid", "said"),
    [
        ([], "none", "at least one"),
        (["dog", " "], "none", "empty name"),
        (["dog"], "", "empty name"),
        (["dog", "Dog "], "none", "'dog'"),
        (["dog"], "DOG", "'dog'"),
        (["$dog"], "none", "each task's data"),
    ],
)
def test_a_name_that_can_be_no_choice_is_refused(classes: list[str], invalid: str, said: str):
    with pytest.raises(BadLabelConfig, match=said):
        recommended_config(classes, invalid)
