"""A method that cannot be called as its protocol says is refused when the defense is built, in one line."""

import pytest
import torch
from torch import nn

from bench.contracts.cards import DefenseCard
from bench.contracts.errors import DefenseFault
from bench.contracts.protocols import as_defense
from bench.contracts.signatures import CAPABILITIES, check_signatures
from bench.datasets.dataset import load_dataset
from bench.plugins.registry import Registry
from bench.training.loading import make_defense


def built(*, randomized=False, **methods):
    methods.setdefault("logits", (lambda self, x, rng: x) if randomized else (lambda self, x: x))
    made = type("Made", (), methods)()
    return as_defense(DefenseCard(name="made", datasets=("digits",), randomized=randomized), made)


WRONG = {
    "reconstruct without labels": (
        {"reconstruct": lambda self, x: x},
        "its reconstruct(x) must be reconstruct(x, y)",
    ),
    "a bound without streams": (
        {"bound_norms": ("L2",), "lower_bound": lambda self, x, y, norm: x},
        "its lower_bound(x, y, norm) must be lower_bound(x, y, norm, streams)",
    ),
    "a decision with too much": (
        {"decide": lambda self, x, threshold: x},
        "its decide(x, threshold) must be decide(x)",
    ),
    "keywords only": (
        {"detection_score": lambda self, *, x: x},
        "its detection_score(*, x) must be detection_score(x)",
    ),
    "limits without data": (
        {"calibration": {}, "use": lambda self, calibration: None, "calibrate": lambda self: {}},
        "its calibrate() must be calibrate(data)",
    ),
    "no samples": (
        {"warm_answers": lambda self: self},
        "its warm_answers() must be warm_answers(samples)",
    ),
    "a score of two images": (
        {"decoded": lambda self, x, z: x},
        "its decoded(x, z) must be decoded(x)",
    ),
    "training without a trainer": (
        {"fit": lambda self, data: None, "state_dict": lambda self: {}, "load_state_dict": lambda self, state: None},
        "its fit(data) must be fit(data, trainer)",
    ),
    "logits with unannounced streams": ({"logits": lambda self, x, rng: x}, "its logits(x, rng) must be logits(x)"),
    "randomized logits without streams": (
        {"logits": lambda self, x: x, "randomized": True},
        "its logits(x) must be logits(x, rng) (a randomized defense takes its streams)",
    ),
    "a randomized gradient without streams": (
        {"input_gradient": lambda self, x: x, "randomized": True},
        "its input_gradient(x) must be input_gradient(x, rng) (a randomized defense takes its streams)",
    ),
    "an unrolled gradient with streams": (
        {"unrolled_gradient": lambda self, x, rng: x},
        "its unrolled_gradient(x, rng) must be unrolled_gradient(x)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_signature_is_named_with_the_right_one(case):
    members, message = WRONG[case]
    with pytest.raises(DefenseFault) as error:
        check_signatures(built(**members))
    assert str(error.value) == message


def test_every_protocol_with_methods_has_a_wrong_example():
    named = {name for members, _ in WRONG.values() for name in members}
    assert [
        of.__name__ for of in CAPABILITIES if not named & {name for name in vars(of) if not name.startswith("_")}
    ] == []


@pytest.mark.parametrize(
    "methods",
    [
        {"reconstruct": lambda self, image, label: image},
        {"reconstruct": lambda self, *arguments: arguments[0]},
        {"reconstruct": lambda self, x, y, steps=5: x},
        {"input_gradient": lambda self, x, *rng: x},
        {"reconstruct": torch.no_grad()(lambda self, x, y: x)},
        {"input_gradient": lambda self, x, rng: x, "randomized": True},
    ],
)
def test_what_can_be_called_as_the_protocol_says_is_right(methods):
    check_signatures(built(**methods))


def test_a_module_and_its_methods_are_right():
    check_signatures(as_defense(DefenseCard(name="made", datasets=("digits",)), nn.Flatten()))


def test_a_plugin_with_a_wrong_signature_cannot_be_built(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from bench import defense\nclass Net:\n    def logits(self, x): ...\n    def reconstruct(self, x): ...\n"
        '@defense("mine", datasets=["digits"])\ndef mine():\n    return Net()\n'
    )
    with pytest.raises(DefenseFault) as error:
        make_defense("mine", load_dataset("digits"), Registry([tmp_path / "mine.py"]))
    path = tmp_path / "mine.py"
    assert str(error.value) == (
        f"defense 'mine' (file {path}) cannot be built: its reconstruct(x) must be reconstruct(x, y)"
    )
