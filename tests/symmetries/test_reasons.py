"""Why positions stay as they are: each cause by its kind, and in words for people only."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.symmetry_checks import normal
from jax import lax

import dimat_jax
from dimat_jax.symmetries import find_symmetries
from dimat_jax.symmetries.reasons import Cause, Reason

X = normal(9, x=(4, 3))["x"]


def add_constant(h):
    return h + np.arange(7.0)


def add_random(h):
    return h + jax.random.normal(jax.random.key(0), (7,))


@functools.partial(jax.vmap, in_axes=1, out_axes=1)
def loop(unit):
    """One loop for all units, with a condition of each."""
    return lax.while_loop(lambda unit: unit.sum() < 1, lambda unit: unit + 1, unit)


def convolve(h):
    return lax.conv(h[:, None], jnp.ones((1, 1, 2)), (1,), "VALID")


@pytest.mark.parametrize(
    ("between", "reason", "text"),
    [
        (lambda h: jnp.cumsum(h, 1), Reason.PRIMITIVE, "cumsum"),
        (lambda h: lax.slice_in_dim(h, 0, 7, 2, 1), Reason.STRIDED_SLICE, "a slice with a stride"),
        (lambda h: jnp.linalg.qr(h)[0], Reason.NO_RULE, "no rule for the primitive 'qr'"),
        (add_random, Reason.RANDOM_BITS, "random bits"),
        (convolve, Reason.CONVOLUTION_WINDOW, "the window of a convolution"),
        (lambda h: h.reshape(7, 4).cumsum(1), Reason.RESHAPE, "a reshape whose factors"),
    ],
    ids="primitive slice no_rule random convolution reshape".split(),
)
def test_the_kind_and_the_words_of_a_cause(between, reason, text):
    v = normal(0, a=(3, 7))
    found = find_symmetries(lambda v, x: between(x @ v["a"]).sum(), v, X)
    (part,) = (part for part in found.frozen if (part.path, part.axis) == ("a", 1))
    assert part.cause.reason is reason
    assert part.why.startswith(text)


def test_inputs_outputs_and_constants():
    v = normal(0, a=(3, 7), b=(7, 2))
    found = find_symmetries(lambda v, x: add_constant(x @ v["a"]) @ v["b"], v, X)
    assert {(part.path, part.axis): part.cause for part in found.frozen} == {
        ("a", 0): Cause(Reason.INPUT),
        ("a", 1): Cause(Reason.CONSTANT, "float32[7]"),
        ("b", 0): Cause(Reason.CONSTANT, "float32[7]"),
        ("b", 1): Cause(Reason.OUTPUT),
    }
    assert found.notes[0] == "a, axis 1, is frozen by a captured constant float32[7]"


def test_loops():
    v = normal(0, a=(3, 7), b=(7, 2))
    found = find_symmetries(lambda v, x: loop(x @ v["a"]) @ v["b"], v, X)
    assert Reason.LOOP_CONDITION in {part.cause.reason for part in found.frozen}

    def layers(v, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["w"])[0]

    found = find_symmetries(layers, normal(0, w=(5, 3, 3)), X)
    assert Cause(Reason.SCAN_STEPS) in {part.cause for part in found.frozen if part.axis == 0}


def test_only_what_another_way_to_write_the_model_may_change_is_noted():
    v = normal(0, a=(3, 7))
    for between, noted in ((lambda h: jnp.cumsum(h, 1), False), (add_random, True)):
        found = find_symmetries(lambda v, x: between(x @ v["a"]).sum(), v, X)  # noqa: B023
        assert bool(found.notes) == noted


def test_no_code_hangs_on_the_words():
    """They stand in one place: nobody compares with them."""
    root = pathlib.Path(dimat_jax.__file__).parent
    words = [reason.value.partition("{")[0].strip() for reason in Reason]
    for path in (path for path in root.rglob("*.py") if path.name != "reasons.py"):
        text = path.read_text()
        assert not [w for w in words if w and (f'"{w}' in text or f"'{w}" in text)], path
