"""From concepts to prompts: what is forgotten, how closed-form edits say it, what is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metaunlearn.data.concepts import EVERYDAY, guide_prompts, prompts_for
from metaunlearn.errors import UserError
from metaunlearn.models import load_pipeline


@pytest.fixture(scope="module")
def canvas(tiny_model: Path) -> Any:
    """The tiny pipeline has Canvas's tokenizer, which is what Canvas is known by."""
    return load_pipeline(tiny_model)


class WordTokenizer:
    """A token a word, a start and an end."""

    def __init__(self, model_max_length: int = 77) -> None:
        self.model_max_length = model_max_length

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, texts: list[str], *, truncation: bool, max_length: int) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[["<", *text.split(), ">"][:max_length] for text in texts])


@pytest.fixture(scope="module")
def other() -> Any:
    """Any other model, as far as prompts go."""
    return SimpleNamespace(tokenizer=WordTokenizer())


def test_any_model(other: Any) -> None:
    prompts = prompts_for(other, ["a gun|a pistol", "van gogh"], retain=["a dog"], related=["a water pistol"])
    assert prompts.edited == ("a gun", "a pistol", "van gogh")
    assert prompts.of_concept[1][:2] == ("a pistol", "a photo of a pistol")
    assert sorted(text for texts in prompts.of_concept for text in texts) == sorted(prompts.forget)
    assert prompts.kept == ("a water pistol", "a dog")


@pytest.mark.parametrize("concepts", [["a dog"], ["the dog|puppy"], ["Dog", "a car"]])
def test_what_is_erased_is_not_among_the_everyday_things(other: Any, concepts: list[str]) -> None:
    prompts = prompts_for(other, concepts)
    assert "a dog" in EVERYDAY
    assert not any("dog" in text for text in (*prompts.kept, *prompts.related, *prompts.unrelated))
    assert "a cat" in prompts.kept


@pytest.mark.parametrize(
    "concepts", [["knife", "twemoji"], ["twemoji", "clown"], ["knife", "axe"], ["twemoji", "noto"], ["axe|openmoji"]]
)
def test_no_concept_is_kept_for_another(canvas: Any, concepts: list[str]) -> None:
    """A hammer in Twemoji's style is like a knife, and a knife in Noto's like Twemoji."""
    prompts = prompts_for(canvas, concepts)
    assert not {*prompts.forget} & {*prompts.related, *prompts.unrelated, *prompts.kept}
    assert prompts.related
    assert prompts.unrelated


@pytest.mark.parametrize(
    ("concepts", "kept"),
    [
        (["a dog"], {"retain": ["a dog"]}),
        (["puppy|a dog"], {"related": ["the dog"]}),
        (["a dog"], {"retain": ["a cat|dog"]}),
    ],
)
def test_a_concept_cannot_be_kept(other: Any, canvas: Any, concepts: list[str], kept: dict[str, list[str]]) -> None:
    for pipeline in (other, canvas):
        with pytest.raises(UserError, match=r"dog'.*--retain TEXT.*--related TEXT.*erased, as '(a )?dog'.*--concept"):
            prompts_for(pipeline, concepts, **kept)
    with pytest.raises(UserError, match=r"'a fox in twemoji style' is to be kept"):
        prompts_for(canvas, ["twemoji"], retain=["a fox in twemoji style"])


def test_a_single_text_is_a_list_of_one(other: Any) -> None:
    listed = prompts_for(other, ["a gun|a pistol"], retain=["a dog|a puppy"], related=["a toy"])
    assert prompts_for(other, "a gun|a pistol", retain="a dog|a puppy", related="a toy") == listed
    assert listed.kept == ("a toy", "a dog", "a puppy")
    assert prompts_for(other, "a gun", retain="none").kept == ()


def test_concepts_take_turns(other: Any, canvas: Any) -> None:
    """Whoever takes the first n prompts has all concepts equally often, and one that has few prompts begins again."""
    assert prompts_for(other, ["zebra", "gnu"]).forget[:3] == ("zebra", "gnu", "a photo of zebra")
    styles = prompts_for(canvas, ["openmoji", "twemoji"])
    assert [("openmoji" in text, "twemoji" in text) for text in styles.forget[:4]] == [(True, False), (False, True)] * 2
    both = prompts_for(canvas, ["openmoji", "axe"])
    many, few = both.of_concept
    assert len(many) > 2 * len(few)
    assert both.forget[0::2] == many
    assert both.forget[1::2][: 2 * len(few)] == 2 * few


def test_any_model_where_nothing_is_named_to_be_kept(other: Any) -> None:
    assert prompts_for(other, ["a gun"]).kept == EVERYDAY


def test_nothing_is_kept_where_none_is_to_be_retained(other: Any, canvas: Any) -> None:
    """Neither our own list nor Canvas's groups; what is named as related is kept alone, and is both kinds' prompts."""
    for pipeline in (other, canvas):
        prompts = prompts_for(pipeline, ["knife"], retain=["none"])
        assert prompts.kept == prompts.related == prompts.unrelated == ()
        with pytest.raises(UserError, match=r"--retain none\).*no prompt.*--retain-data.*--no-meta"):
            prompts.check_retained()
        prompts = prompts_for(pipeline, ["knife"], retain=["none"], related=["a fork"])
        assert prompts.kept == ("a fork",)
        assert prompts.related == prompts.unrelated
        assert "a photo of a fork" in prompts.related
        prompts.check_retained()
        prompts_for(pipeline, ["knife"]).check_retained()
    with pytest.raises(UserError, match=r"--retain\) says 'none'"):
        prompts_for(other, ["knife"], retain=["none", "a dog"])


def test_what_an_edit_erases_names_the_concept_alone(canvas: Any) -> None:
    """Captions are "a knife", "a knife in noto style", …: with the things in them a style's would erase these, too."""
    assert prompts_for(canvas, ["knife"]).edited == ("a knife",)
    assert prompts_for(canvas, ["an axe|knife"]).edited == ("an axe", "a knife")
    assert prompts_for(canvas, ["twemoji"]).edited == ("in twemoji style",)
    assert all("in twemoji style" in prompt for prompt in prompts_for(canvas, ["twemoji"]).forget)
    assert prompts_for(canvas, ["zebra"]).edited == ("zebra",)


def test_canvas_keeps_its_own_groups(canvas: Any) -> None:
    prompts = prompts_for(canvas, ["knife"])
    assert prompts.kept[0] == "a fork and knife"
    assert set(prompts.kept) == {*prompts.related, *prompts.unrelated}
    assert prompts_for(canvas, ["knife"], retain=["a cat"]).kept[-1] == "a cat"


def test_a_guide_takes_each_concepts_place(other: Any, canvas: Any) -> None:
    prompts = prompts_for(other, ["a gun|a pistol", "van gogh"])
    guided = dict(zip(prompts.forget, guide_prompts(other, prompts, "a toy"), strict=True))
    assert guided["a photo of a pistol"] == guided["a photo of van gogh"] == "a photo of a toy"
    assert guided["a gun"] == "a toy"
    prompts = prompts_for(canvas, ["an axe", "saw"])
    guided = dict(zip(prompts.forget, guide_prompts(canvas, prompts, "hammer"), strict=True))
    assert guided["an axe in noto style"] == guided["a saw in noto style"] == "a hammer in noto style"
    prompts = prompts_for(canvas, ["openmoji"])
    guided = dict(zip(prompts.forget, guide_prompts(canvas, prompts, "fluent"), strict=True))
    assert guided["a cat in openmoji style"] == "a cat in fluent style"


@pytest.mark.parametrize(("concept", "guide"), [("openmoji", "cat"), ("knife", "noto"), ("openmoji", "a house")])
def test_on_canvas_a_style_takes_a_styles_place(canvas: Any, concept: str, guide: str) -> None:
    with pytest.raises(UserError, match=f"the guide '{guide}' cannot take the place .*--set guide"):
        guide_prompts(canvas, prompts_for(canvas, [concept]), guide)


def test_a_prompt_whose_end_would_not_be_read_is_left_out_but_not_the_text_itself() -> None:
    short = SimpleNamespace(tokenizer=WordTokenizer(model_max_length=7))
    prompts = prompts_for(short, ["a red toy gun", "gun"], retain=["a dog of a kind that is long"])
    assert prompts.of_concept == (
        ("a red toy gun",),
        ("gun", "a photo of gun", "a picture of gun", "an image of gun", "a drawing of gun"),
    )
    assert prompts.unrelated == ("a dog of a kind that is long",)
    assert guide_prompts(short, prompts, "thing")[:3] == ("thing", "thing", "thing")
    # A guide is bare wherever a template with it would be cut.
    assert {*guide_prompts(short, prompts, "a red toy pistol")} == {"a red toy pistol"}
    with pytest.raises(UserError, match=r"guide 'a thing of no kind at all' .* longer than the 7 tokens"):
        guide_prompts(short, prompts, "a thing of no kind at all")


@pytest.mark.parametrize(
    ("which", "named"), [("other", ["gun", "gun"]), ("other", ["gun|a gun|gun"]), ("canvas", ["knife", "a knife"])]
)
def test_a_concept_that_is_named_twice_is_refused(which: str, named: list[str], request: pytest.FixtureRequest) -> None:
    with pytest.raises(UserError, match="is named twice"):
        prompts_for(request.getfixturevalue(which), named)
