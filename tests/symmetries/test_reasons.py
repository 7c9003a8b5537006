"""Why positions stay as they are: each cause by its kind, and in words for people only."""

import functools
import pathlib

import flax.linen as nn
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
        (lambda h: h[:, ::-1] + h, Reason.REVERSAL, "a reversal"),
        (lambda h: h * jnp.arange(7), Reason.NUMBERED, "numbered positions"),
        (lambda h: lax.pad(h, 0.0, ((0, 0, 0), (0, -1, 0))), Reason.PADDING, "padding that crops"),
        (lambda h: h.reshape(7, 4).cumsum(1), Reason.RESHAPE, "a reshape whose factors"),
    ],
    ids="primitive slice no_rule random convolution reversal iota padding reshape".split(),
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


def note_of(between, **shapes):
    """The only note, but for the path of this file; and the line that it names."""
    v = normal(0, a=(3, 7), b=(7, 2), **shapes)
    (note,) = find_symmetries(lambda v, x: between(x @ v["a"], v) @ v["b"], v, X).notes
    text, _, line = note.partition(f" at {__file__}:")
    return text, pathlib.Path(__file__).read_text().splitlines()[int(line) - 1].strip()


def test_a_note_gives_the_primitive_its_line_and_the_leaves_behind_it():
    text, line = note_of(lambda h, v: add_constant(h))
    assert text == "a captured constant float32[7]: frozen are a[1], b[0], first in 'add'"
    assert line == "return h + np.arange(7.0)"
    text, line = note_of(lambda h, v: jnp.tanh(no_rule(h)))
    assert text == (
        "no rule for the primitive 'pure_callback': frozen are a[1], b[0], first in 'pure_callback'"
    )
    assert line == "return jax.pure_callback(lambda h: h, h, h)"
    text, line = note_of(lambda h, v: halves(h))
    assert text == "a slice with a stride: frozen are a[1], b[0], first in 'slice'"
    assert line == "return jnp.concatenate([h[:, 1::2], h[:, ::2]], 1)"


def test_the_line_is_found_for_what_a_library_has_jitted():
    text, line = note_of(lambda h, v: reversed_by_numpy(h))
    assert text == "a reversal: frozen are a[1], b[0], first in 'rev'"
    assert line == "return jnp.flip(h, 1) + h"


@pytest.mark.parametrize("swapped", [False, True])
def test_the_cause_that_is_named_has_a_line_whatever_the_order(swapped):
    constant = normal(1, c=(4, 7))["c"]

    def between(h):
        h = h + h[:, ::2].sum()
        return constant * h if swapped else h * constant

    v = normal(0, a=(3, 7), b=(7, 2))
    notes = find_symmetries(lambda v, x: between(x @ v["a"]) @ v["b"], v, X).notes
    assert notes
    assert all(f" at {__file__}:" in note for note in notes)


def reversed_by_numpy(h):
    return jnp.flip(h, 1) + h


def no_rule(h):
    return jax.pure_callback(lambda h: h, h, h)


def halves(h):
    return jnp.concatenate([h[:, 1::2], h[:, ::2]], 1)


def test_one_note_for_many_leaves():
    text, _ = note_of(
        lambda h, v: add_constant(h + v["c"] + v["d"] + v["e"] + v["f"]),
        **dict.fromkeys("cdef", (7,)),
    )
    leaves = "a[1], c[0], d[0], e[0], f[0] and 1 more"
    assert text == f"a captured constant float32[7]: frozen are {leaves}, first in 'add'"


def test_a_cause_in_what_flax_computes_is_found_in_the_users_code():
    """Dropout draws random bits in a file of Flax's; the line is that which calls it."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(7)(x)
            x = nn.Dropout(0.5)(x, deterministic=False)
            return nn.Dense(2)(x)

    variables = jax.eval_shape(Layer().init, {"params": jax.random.key(0)}, X)
    apply = functools.partial(Layer().apply, rngs={"dropout": jax.random.key(0)})
    (note,) = find_symmetries(lambda v, x: apply(v, x), variables, X).notes
    leaves = "params/Dense_0/kernel[1], params/Dense_0/bias[0], params/Dense_1/kernel[0]"
    assert note.startswith(f"random bits: frozen are {leaves}, first in 'select_n' at {__file__}:")
    line = pathlib.Path(__file__).read_text().splitlines()[int(note.rpartition(":")[2]) - 1]
    assert line.strip() == "x = nn.Dropout(0.5)(x, deterministic=False)"


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
