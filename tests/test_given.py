"""What a method of another package may hand over wrongly, and is told before it reaches the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaunlearn.conditioning import Conditioning
from metaunlearn.erasure.given import Untouched, checked_batch, checked_edit, checked_loss, trained_by
from metaunlearn.erasure.interface import Edit, ForgetBatch
from metaunlearn.errors import UserError
from metaunlearn.models import adapt, load_pipeline
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import subset

SIZE = 3


@pytest.fixture
def model(tiny_model: Path) -> TextToImageModel:
    return adapt(load_pipeline(tiny_model))


class Method:
    """Of another package, since this module is none of metaunlearn's."""

    def __init__(self, names: Any = ()) -> None:
        self.names = names

    def trained(self, model: TextToImageModel) -> Any:
        return self.names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("x", "as a set; got 'x'"),
        (None, "as a set; got None"),
        (frozenset(), "at least one"),
        ({"conv_in.weight", "no.such.weight"}, "what the model does not have: no.such.weight"),
    ],
)
def test_what_is_trained_must_be_names_of_parameters(model: TextToImageModel, names: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"Method\.trained\(\).*{message}"):
        trained_by(Method(names), model)


def test_names_that_are_there_are_trained(model: TextToImageModel) -> None:
    assert trained_by(Method(["conv_in.weight"]), model) == {"conv_in.weight"}


Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda theta: theta, "must return a .*Edit; got dict"),
        (lambda theta: None, "got NoneType"),
        (
            lambda theta: Edit({k: p for k, p in theta.items() if k != "conv_in.weight"}, {}),
            "one of them only: conv_in",
        ),
        (lambda theta: Edit(theta | {"extra": torch.ones(1)}, {}), "one of them only: extra"),
        (lambda theta: Edit(theta | {"conv_in.bias": torch.ones(1)}, {}), r"conv_in\.bias as \(1,\); it is \(\d+,\)"),
        (lambda theta: Edit(theta, {"norm": torch.ones(1)}), "JSON values: .*Tensor"),
    ],
)
def test_an_edit_has_every_parameter_in_its_shape(model: TextToImageModel, change: Change, message: str) -> None:
    with pytest.raises(UserError, match=rf"Method\.edit\(\).*{message}"):
        checked_edit(Method(), change(model.parameters()), model)


def test_a_sound_edit_passes(model: TextToImageModel) -> None:
    edit = Edit(model.parameters(), {"condition": 3.0})
    assert checked_edit(Method(), edit, model) is edit


def batch(model: TextToImageModel, **other: Any) -> ForgetBatch:
    """A sound one, but for what is said."""
    sound = {
        "x_t": torch.zeros(SIZE, *model.latent_shape), "t": torch.zeros(SIZE, dtype=torch.int64),
        "cond": Conditioning(torch.zeros(SIZE, 4, model.text_width)), "target": torch.zeros(SIZE, *model.latent_shape),
    }  # fmt: skip
    return ForgetBatch(**(sound | other))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"target": torch.zeros(())}, r"target must have the shape \(3, .*\); got \(\)"),
        ({"x_t": torch.zeros(SIZE, 1, 4, 4)}, "x_t must have the shape"),
        ({"t": torch.zeros(SIZE)}, "t must be int64; got float32"),
        ({"t": torch.zeros(SIZE + 1, dtype=torch.int64)}, r"t must have the shape \(3,\); got \(4,\)"),
        ({"t": torch.full((SIZE,), 5000)}, "t must lie between 0 and 999; got 5000 to 5000"),
        ({"cond": Conditioning(torch.zeros(1, 4, 8))}, r"cond\.tokens must have the shape"),
        ({"cond": torch.zeros(SIZE, 4, 8)}, "with a Conditioning"),
    ],
)
def test_a_forget_batch_has_its_rows(model: TextToImageModel, other: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"Method\.batch\(\).*{message}"):
        checked_batch(Method(), batch(model, **other), model, SIZE, first=True)


def test_what_is_no_forget_batch_is_refused(model: TextToImageModel) -> None:
    for wrong in (None, tuple(batch(model))):
        with pytest.raises(UserError, match=r"must return a .*ForgetBatch"):
            checked_batch(Method(), wrong, model, SIZE, first=False)
    assert checked_batch(Method(), batch(model), model, SIZE, first=True).t.tolist() == [0] * SIZE


def test_a_method_begins_with_what_can_be_asked_for_batches() -> None:
    with pytest.raises(UserError, match="'mine' begins with no forget loss"):
        checked_loss("mine", None)
    with pytest.raises(UserError, match=r"'mine' begins with int, which has no batch\(\)"):
        checked_loss("mine", 3)


def test_what_is_not_trained_must_stay(model: TextToImageModel) -> None:
    trained = subset(model.parameter_names, "x")
    untouched, theta = Untouched(Method(), model, trained), model.parameters()
    theta[min(trained)].add_(1.0)
    untouched.check(theta)
    theta["conv_in.weight"].add_(1.0)
    with pytest.raises(UserError, match=r"Method has changed parameters that its trained\(\) does not name"):
        untouched.check(theta)
