from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import BadLabelConfig
from neat_backend.labelstudio.label_config import LabelConfig, parse, resolve
from neat_backend.records import EMPTY, NOT_IN_CONFIG, SEVERAL, SKIPPED, UNREADABLE, Annotation, Label

NAMED = ("invalid", "none of these")
DOGS = LabelConfig("class", "image", "image", ("dog", "cat"), ("invalid",))
NO_INVALID = LabelConfig("class", "image", "image", ("dog", "cat"), ())
IMAGE = '<Image name="image" value="$image"/>'


def config(body: str) -> str:
    return f"<View>{body}</View>"


def choices(body: str, attributes: str = "") -> str:
    return config(f'{IMAGE}<Choices name="class" toName="image" {attributes}>{body}</Choices>')


def test_classes_and_the_named_invalid_choice():
    xml = choices('<Choice value="dog"/><Choice value="cat"/><Choice value=" None of These "/>', 'choice="single"')
    found = parse(xml, NAMED)
    assert found == LabelConfig("class", "image", "image", ("dog", "cat"), (" None of These ",), texts=("dog", "cat"))


def test_a_marked_choice_wins_over_the_names():
    xml = choices('<Choice value="dog"/><Choice value="invalid"/><Choice value="junk" invalid="true"/>')
    assert parse(xml, NAMED) == LabelConfig(
        "class", "image", "image", ("dog", "invalid"), ("junk",), ("dog", "invalid")
    )


def test_an_encoder_of_text_is_told_a_choices_hint_else_its_value():
    xml = choices(
        '<Choice value="Dog" alias="c1" hint="a photo of a dog"/><Choice value="Tabby cat" alias="c2"/>'
        '<Choice value="owl" hint=""/><Choice value="invalid" hint="anything else"/>'
    )
    found = parse(xml, NAMED)
    assert found.classes == ("c1", "c2", "owl")
    assert found.texts == ("a photo of a dog", "Tabby cat", "owl")


def test_a_choice_is_called_by_its_alias_as_results_are():
    assert parse(choices('<Choice value="Dog 🐶" alias="dog"/>'), NAMED).classes == ("dog",)


def test_a_choice_is_compared_as_it_is_written_blanks_and_all():
    xml = choices(
        '<Choice value="dog "/><Choice value=" cat&#160;"/><Choice value="&#9;owl"/>'
        '<Choice value="none" invalid="true"/>'
    )
    found = parse(xml, ())
    assert found.classes == ("dog ", " cat\xa0", "\towl")
    assert [resolve(7, [annotation(choice)], found) for choice in found.classes] == [
        Label(7, "dog "),
        Label(7, " cat\xa0"),
        Label(7, "\towl"),
    ]
    assert resolve(7, [annotation("dog")], found) == Label(7, set_aside=NOT_IN_CONFIG, answer="dog")


def test_a_name_that_means_invalid_is_compared_with_value_and_alias():
    xml = choices(
        '<Choice value="Hund" alias="dog"/><Choice value="Other" alias="oth"/><Choice value="x" alias="Invalid "/>'
    )
    found = parse(xml, ("invalid", "other"))
    assert (found.classes, found.invalid) == (("dog",), ("oth", "Invalid "))


NESTED = (
    '<Choice value="even"><Choice value="two"/><Choice value="four" alias="4"/></Choice>'
    '<Choice value="left"><Choice value="nine"/></Choice>'
    '<Choice value="junk" invalid="true"><Choice value="blurred"/></Choice><Choice value="neither" invalid="true"/>'
)


def test_without_allow_nested_the_page_offers_the_headings():
    found = parse(choices(NESTED), ())
    assert (found.classes, found.invalid, found.paths) == (("even", "left"), ("junk", "neither"), {})
    assert resolve(7, [annotation("even")], found) == Label(7, "even")
    assert found.stored("even") == "even"


def test_with_allow_nested_the_classes_are_the_leaves_and_inherit_the_mark():
    found = parse(choices(f"<View>{NESTED}</View>", 'allowNested="true"'), ())
    assert (found.classes, found.invalid) == (("two", "4", "nine"), ("blurred", "neither"))
    assert found.texts == ("two", "four", "nine")
    assert [found.stored(name) for name in ("4", "neither")] == [["even", "4"], ["neither"]]


@pytest.mark.parametrize(
    ("stored", "label"),
    [
        ([("even", "two")], Label(7, "two")),
        ([("left",), ("left", "nine")], Label(7, "nine")),
        (["left", ("left", "nine")], Label(7, "nine")),
        (["neither"], Label(7, invalid=True)),
        ([("junk", "blurred")], Label(7, invalid=True)),
        (["even", ("even", "two"), ("even", "4")], Label(7, set_aside=SEVERAL)),
        (["even"], Label(7, set_aside=NOT_IN_CONFIG, answer="even")),
        ([("left", "two")], Label(7, set_aside=NOT_IN_CONFIG, answer="left / two")),
        (["two"], Label(7, "two")),  # an import that names the leaf alone
    ],
)
def test_a_path_that_begins_another_is_dropped_and_one_leaf_is_a_label(stored, label):
    found = parse(choices(NESTED, 'allowNested="true"'), ())
    assert resolve(7, [annotation(stored)], found) == label


def test_the_first_suitable_control_unless_one_is_named():
    xml = config(
        '<Image name="photo" value="$data.url"/><Text name="text" value="$text"/>'
        '<Choices name="mood" toName="text"><Choice value="good"/></Choices>'
        '<Choices name="tags" toName="photo" choice="multiple"><Choice value="big"/></Choices>'
        '<Choices name="region" toName="photo" perRegion="true"><Choice value="left"/></Choices>'
        '<Choices name="animal" toName="photo"><Choice value="dog"/></Choices>'
        '<Choices name="plant" toName="photo" choice="single-radio"><Choice value="oak"/></Choices>'
    )
    assert parse(xml, NAMED) == LabelConfig("animal", "photo", "data.url", ("dog",), (), ("dog",))
    assert parse(xml, NAMED, "plant").classes == ("oak",)
    for control, why in {"tags": "several choices", "region": "perRegion", "mood": "Image", "gone": "animal"}.items():
        with pytest.raises(BadLabelConfig, match=why):
            parse(xml, NAMED, control)


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("", "empty"),
        ("<View>", "not XML"),
        ("dogs", "not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "DOCTYPE"),
        (config(IMAGE), "no Choices tag"),
        (config('<Choices name="a" toName="t"><Choice value="b"/></Choices>'), "no Image tag"),
        (choices('<Choice value="a"/>', 'choice="multiple"'), "single"),
        (choices(""), "no Choice with a value"),
        (choices('<Choice value="invalid"/>'), "only choices that mean invalid"),
        (config('<Image name="image" value="photo.png"/><Choices name="a" toName="image"/>'), "value="),
        # what would be connected and then answered for nothing
        (choices('<Choice value="a"/>', 'value="$options"'), r'value="\$options"'),
        (choices("", 'value="$options"'), r'value="\$options"'),
        (
            config(
                '<Repeater on="$images" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$images[{{idx}}].url"/>'
                '<Choices name="c_{{idx}}" toName="page_{{idx}}"><Choice value="a"/></Choices></Repeater>'
            ),
            "Repeater",
        ),
        (choices('<Choice value="a"/>').replace("$image", "$a-b"), r'Image tag \'image\' has value="\$a-b"'),
        (choices('<Choice value="a"/>').replace("$image", "$bild_ä"), r'value="\$bild_ä"'),
        (choices('<Choice value="a"/>').replace("$image", "$images[{{idx}}].url"), "not the key"),
        (choices('<Choice value="a"/>').replace("$image", "$images[99999999999].url"), "not the key"),
        (choices('<Choice value="a"/>', 'perItem="true"'), "perItem"),
        (choices('<Choice value="a"/><Choice value="b" invalid="yes"/>'), "'b' has invalid=\"yes\""),
        (choices('<Choice value="a"/><Choice value="b" invalid=""/>'), "'b' has invalid"),
        (choices('<Choice value="a" alias="x"/><Choice value="b" alias="x" invalid="true"/>'), "'a' and 'b'.*'x'"),
        (choices('<Choice value="a" alias="invalid"/><Choice value="b" alias="invalid" invalid="true"/>'), "'invalid'"),
        (choices('<Choice value="a" alias=""/>'), "'a' has alias"),
        (choices('<Choice value="costs $5"/>'), r"takes '\$5' from each task"),
        (choices('<Choice value="a">A</Choice>'), "'a' has a text"),
        (
            choices(
                '<Choice value="pets"><Choice value="dog"/><Choice value="blurred"/></Choice>'
                '<Choice value="junk" invalid="true"><Choice value="blurred"/></Choice>',
                'allowNested="true"',
            ),
            "two choices are called 'blurred' \\('pets / blurred' and 'junk / blurred'\\)",
        ),
    ],
)
def test_a_config_that_cannot_be_used_says_why(xml, why):
    with pytest.raises(BadLabelConfig, match=why):
        parse(xml, NAMED)


def test_a_control_that_cannot_be_used_is_passed_over_for_one_that_can():
    xml = config(
        f'{IMAGE}<Choices name="a" toName="image" value="$options"/>'
        '<Repeater on="$x"><Choices name="b_{{idx}}" toName="image"><Choice value="no"/></Choices></Repeater>'
        '<Choices name="c" toName="image"><Choice value="yes" alias="$1"/></Choices>'
    )
    assert parse(xml, ()).classes == ("$1",)
    with pytest.raises(BadLabelConfig, match=r"'a' can't be used.*takes its choices from each task"):
        parse(xml, (), "a")


def test_names_are_as_written_and_the_setting_finds_them_all_the_same():
    xml = config(
        '<Image name="image " value=" $image "/><Choices name=" class" toName="image "><Choice value="a"/></Choices>'
    )
    for control in ("", "class", " class"):
        found = parse(xml, (), control)
        assert (found.control, found.to_name, found.image_key) == (" class", "image ", "image")


START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def annotation(choice, minute=0, by=1, skip=False, truth=False, number=None):
    picked = () if choice is None else (choice,) if isinstance(choice, str) else tuple(choice)
    number = minute + 1 if number is None else number
    return Annotation(number, 7, by, {"class": picked}, skip, truth, START + timedelta(minutes=minute))


DOG, CAT, INVALID, NOTHING = Label(7, "dog"), Label(7, "cat"), Label(7, invalid=True), Label(7)
# answered by somebody, without a vote coming of it
SKIP, TWO, NONE = (Label(7, set_aside=reason) for reason in (SKIPPED, SEVERAL, EMPTY))
WOLF = Label(7, set_aside=NOT_IN_CONFIG, answer="wolf")


@pytest.mark.parametrize(
    ("annotations", "label"),
    [
        ([], NOTHING),
        ([annotation("dog")], DOG),
        ([annotation("invalid")], INVALID),
        ([annotation("wolf")], WOLF),
        ([annotation(None)], NONE),
        ([annotation(["dog", "cat"])], TWO),
        ([annotation(["dog", "dog"])], DOG),
        ([annotation(None, skip=True)], SKIP),
        ([annotation("dog", skip=True)], SKIP),
        # an annotator's latest counts, even where it is no vote
        ([annotation("dog", 0), annotation("cat", 1)], CAT),
        ([annotation("dog", 0), annotation(None, 1)], NONE),
        # where nobody's answer is a vote, the latest one says why
        ([annotation("wolf", 1, 1), annotation(["dog", "cat"], 0, 2)], WOLF),
        # the majority, and the latest of a tie
        ([annotation("dog", 0, 1), annotation("dog", 1, 2), annotation("cat", 2, 3)], DOG),
        ([annotation("dog", 0, 1), annotation("cat", 1, 2)], CAT),
        ([annotation("cat", 0, 1), annotation("dog", 1, 2), annotation("dog", 2, 3), annotation("cat", 3, 4)], CAT),
        # without an annotator, each is one of its own
        ([annotation("dog", 0, None), annotation("dog", 1, None), annotation("cat", 2, None)], DOG),
        # ground truth first, whose votes are counted among themselves; one that is no vote is none
        ([annotation("dog", 0, 1, truth=True), annotation("cat", 1, 2), annotation("cat", 2, 3)], DOG),
        ([annotation("dog", 0, 1, truth=True), annotation("cat", 1, 2, truth=True)], CAT),
        ([annotation(c, n, n, truth=True) for n, c in enumerate(["cat", "cat", "dog"])], CAT),
        ([annotation("wolf", 0, 1, truth=True), annotation("cat", 1, 2)], CAT),
        # a person's later answer in place of their own ground truth, and nobody else's
        ([annotation("dog", 0, 1, truth=True), annotation("cat", 1, 1)], CAT),
        ([annotation("dog", 0, 1, truth=True), annotation("cat", 1, 1), annotation("dog", 2, 2)], CAT),
        (
            [annotation(c, n, n, truth=True) for n, c in enumerate(["cat", "cat", "dog"])] + [annotation("dog", 9, 0)],
            DOG,
        ),
        ([annotation("dog", 0, 1, truth=True), annotation(None, 1, 1), annotation("cat", 0, 2)], CAT),
    ],
)
def test_resolving_several_annotations(annotations, label):
    assert resolve(7, annotations, DOGS) == label


def test_a_skip_means_invalid_only_where_no_choice_does():
    skip = [annotation(None, skip=True)]
    assert resolve(7, skip, NO_INVALID) == INVALID
    assert resolve(7, skip, DOGS) == SKIP
    assert resolve(7, [*skip, annotation("dog", 1, 2), annotation("dog", 2, 3)], NO_INVALID) == DOG


@pytest.mark.parametrize(
    ("read", "label"),
    [
        ({"class": None}, Label(7, set_aside=UNREADABLE)),
        ({"": None}, Label(7, set_aside=UNREADABLE)),
        ({"": None, "class": ("dog",)}, DOG),  # a result of nobody's knows voids no other
        ({"other": None, "class": ("dog",)}, DOG),
        ({"other": None}, NONE),
    ],
)
def test_what_cannot_be_read_is_no_vote(read, label):
    assert resolve(7, [Annotation(1, 7, 1, read, False, False, START)], DOGS) == label


@given(
    st.lists(
        st.tuples(st.sampled_from(["dog", "cat", "invalid", "wolf"]), st.integers(0, 3), st.integers(1, 3)), max_size=5
    )
)
def test_the_order_in_which_annotations_are_known_does_not_matter(drawn):
    annotations = [annotation(choice, minute, by, number=n) for n, (choice, minute, by) in enumerate(drawn, 1)]
    labels = {resolve(7, order, DOGS) for order in itertools.permutations(annotations)}
    assert len(labels) == 1


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><View>&b;</View>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;</View>',
        "<View>" * 50_000 + "</View>" * 50_000,
        "<View>" + " " * 1_000_000 + "</View>",
    ],
    ids=["entities in entities", "external entity", "deep", "long"],
)
def test_xml_made_to_harm_is_refused(xml: str) -> None:
    with pytest.raises(BadLabelConfig, match=r"refused|deep|characters"):
        parse(xml, [])


def test_a_text_field_of_that_name_on_the_image_is_where_reasons_go():
    def config(field: str) -> str:
        return (
            '<View><Image name="image" value="$image"/><Choices name="class" toName="image"><Choice value="dog"/>'
            f"</Choices>{field}</View>"
        )

    assert parse(config('<TextArea name="neat_why" toName="image" editable="false"/>'), ()).why
    for field in ("", '<TextArea name="comment" toName="image"/>', '<TextArea name="neat_why" toName="other"/>'):
        assert not parse(config(field), ()).why


@pytest.mark.parametrize(
    "xml",
    [
        f"<View>{IMAGE}" + "".join(f'<Choices name="c{n}" toName="nothing"/>' for n in range(9000)) + "</View>",
        f"<View>{IMAGE}" + '<Choices name="c" toName="' + "a," * 400_000 + '"/></View>',
        f"<View>{IMAGE}" + '<Choices name="c" toName="image" choice="' + "m" * 400_000 + '"/></View>',
        f"<View>{IMAGE}" + '<Choices name="' + "n" * 400_000 + '" toName="image"/></View>',
    ],
)
def test_a_complaint_about_a_huge_config_stays_readable(xml):
    for control in ("", "another", "c"):
        with pytest.raises(BadLabelConfig) as caught:
            parse(xml, [], control)
        assert len(str(caught.value)) < 2000
