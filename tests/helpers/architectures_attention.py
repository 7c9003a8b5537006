"""Small attention and transformer-like architectures; see `architectures.py`."""

import jax
import jax.numpy as jnp
import numpy as np

from helpers.architectures_helpers import normal, weights

TOKENS = (2, 5, 7)  # batch, tokens, features of the input


def _attend(q, k, v, bias=0.0):
    """Softmax attention over `[batch, tokens, heads, size]`."""
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1]) + bias
    return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(logits), v)


def _project(h, kernel):
    return jnp.einsum("btd,dhe->bthe", h, kernel)


def _attention(v, h, bias=0.0):
    q, k, values = (_project(h, v[name]) for name in ("q", "k", "v"))
    return jnp.einsum("bthe,hed->btd", _attend(q, k, values, bias), v["out"])


def fused_qkv_split():
    """Stream; heads, shared by q, k and v; query/key size; value size (each head its own).

    The fused kernel's axis is split in three segments, each heads x size.
    """
    variables = weights(stem=(7, 10), qkv=(10, 60), out=(20, 10), head=(10, 3))

    def function(v, x):
        h = x @ v["stem"]
        parts = [part.reshape(2, 5, 4, 5) for part in jnp.split(h @ v["qkv"], 3, -1)]
        h = h + _attend(*parts).reshape(2, 5, 20) @ v["out"]
        return h.mean(1) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def fused_qkv_reshaped():
    """As `fused_qkv_split`: a reshape to 3 x heads x size, indexed, makes the same segments."""
    variables = weights(stem=(7, 10), qkv=(10, 60), out=(20, 10), head=(10, 3))

    def function(v, x):
        h = x @ v["stem"]
        qkv = (h @ v["qkv"]).reshape(2, 5, 3, 4, 5)
        h = h + _attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(2, 5, 20) @ v["out"]
        return h.mean(1) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def _two_layers() -> dict:
    shapes = {"q": (6, 4, 3), "k": (6, 4, 3), "v": (6, 4, 9), "out": (4, 9, 6)}
    others = {"q": (6, 4, 5), "k": (6, 4, 5), "v": (6, 4, 7), "out": (4, 7, 6)}
    return {
        **weights(stem=(7, 6), head=(6, 2), table=(9, 4)),
        "first": weights(**shapes),
        "second": weights(**others),
    }


def shared_bias():
    """Stream; one group of heads for both layers, tied by their shared bias; both layers' sizes."""
    variables = _two_layers()
    offsets = np.arange(5)[:, None] - np.arange(5)[None, :] + 4

    def function(v, x):
        bias = v["table"][offsets].transpose(2, 0, 1)
        h = x @ v["stem"]
        h = h + _attention(v["first"], h, bias)
        h = h + _attention(v["second"], h, bias)
        return h.mean(1) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def shared_mask():
    """As `shared_bias`, but a mask broadcast over heads ties nothing: two groups of heads."""
    variables = _two_layers()
    del variables["table"]

    def function(v, x):
        mask = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), 0.0, -1e9)[None, None]
        h = x @ v["stem"]
        h = h + _attention(v["first"], h, mask)
        h = h + _attention(v["second"], h, mask)
        return h.mean(1) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def multi_query():
    """Stream; heads; query/key size and value size, one for all heads, which share k and v."""
    variables = weights(
        stem=(7, 6), q=(6, 4, 3), k=(6, 3), v=(6, 5), out=(4, 5, 6), head=(6, 2)
    )  # fmt: skip

    def function(w, x):
        h = x @ w["stem"]
        logits = jnp.einsum("bthd,bsd->bhts", _project(h, w["q"]), h @ w["k"])
        read = jnp.einsum("bhts,bse->bthe", jax.nn.softmax(logits), h @ w["v"])
        return (h + jnp.einsum("bthe,hed->btd", read, w["out"])).mean(1) @ w["head"]

    return function, variables, (normal(*TOKENS),)


def grouped_query():
    """Stream; two key/value heads; the three query heads of each; query/key size; value size."""
    variables = weights(
        stem=(7, 8), q=(8, 6, 5), k=(8, 2, 5), v=(8, 2, 9), out=(6, 9, 8), head=(8, 3)
    )

    def function(w, x):
        h = x @ w["stem"]
        k, v = (jnp.repeat(_project(h, w[name]), 3, axis=2) for name in ("k", "v"))
        read = _attend(_project(h, w["q"]), k, v)
        return (h + jnp.einsum("bthe,hed->btd", read, w["out"])).mean(1) @ w["head"]

    return function, variables, (normal(*TOKENS),)


def rotary():
    """Stream, heads, value size; the rotation's constant frequencies fix query and key."""
    shapes = {"q": (6, 4, 10), "k": (6, 4, 10), "v": (6, 4, 3), "out": (4, 3, 6)}
    variables = {**weights(stem=(7, 6), head=(6, 2)), **weights(**shapes)}
    angles = np.arange(5)[:, None] * 0.1 ** np.arange(5)
    cosine, sine = (np.asarray(f(angles))[:, None, :] for f in (np.cos, np.sin))

    def rotated(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cosine - b * sine, a * sine + b * cosine], -1)

    def function(w, x):
        h = x @ w["stem"]
        q, k, v = (_project(h, w[name]) for name in ("q", "k", "v"))
        read = _attend(rotated(q), rotated(k), v)
        return (h + jnp.einsum("bthe,hed->btd", read, w["out"])).mean(1) @ w["head"]

    return function, variables, (normal(*TOKENS),)


def learned_queries():
    """Latent queries (their mean is read), their features, query/key size, value size."""
    variables = weights(latents=(4, 6), q=(6, 3), k=(7, 3), v=(7, 9), head=(9, 2))

    def function(w, x):
        logits = jnp.einsum("ld,btd->blt", w["latents"] @ w["q"], x @ w["k"])
        read = jnp.einsum("blt,bte->ble", jax.nn.softmax(logits), x @ w["v"])
        return jax.nn.gelu(read).mean(1) @ w["head"]

    return function, variables, (normal(*TOKENS),)


def mixer():
    """Stream, hidden units of token and of channel mixing; tokens are positions."""
    variables = weights(
        stem=(7, 6), scale=(6,), tokens_up=(5, 9), tokens_down=(9, 5), up=(6, 11), down=(11, 6),
        head=(6, 2),
    )  # fmt: skip

    def normalised(v, h):
        mean, variance = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
        return (h - mean) / jnp.sqrt(variance + 1e-6) * v["scale"]

    def function(v, x):
        h = x @ v["stem"]
        mixed = jax.nn.gelu(normalised(v, h).swapaxes(1, 2) @ v["tokens_up"]) @ v["tokens_down"]
        h = h + mixed.swapaxes(1, 2)
        h = h + jax.nn.gelu(normalised(v, h) @ v["up"]) @ v["down"]
        return h.mean(1) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def swiglu():
    """Stream and hidden units: gate and value tie, whatever kernel they come from."""
    variables = weights(stem=(7, 6), gate=(6, 9), up=(6, 9), down=(9, 6), scale=(6,), head=(6, 2))

    def function(v, x):
        h = x @ v["stem"]
        normed = h / jnp.sqrt(jnp.square(h).mean(-1, keepdims=True)) * v["scale"]
        h = h + (jax.nn.silu(normed @ v["gate"]) * (normed @ v["up"])) @ v["down"]
        return h.mean(1) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def fused_glu():
    """Stream and hidden units: gate and value are two segments of one axis, of one group."""
    variables = weights(stem=(7, 6), up=(6, 18), bias=(18,), down=(9, 6), head=(6, 2))

    def function(v, x):
        h = x @ v["stem"]
        h = h + jax.nn.glu(h @ v["up"] + v["bias"]) @ v["down"]
        return h.mean(1) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def layer_scale():
    """Stream, with the branch's learned scale, and hidden units."""
    variables = weights(stem=(7, 6), up=(6, 9), down=(9, 6), scale=(6,), head=(6, 2))

    def function(v, x):
        h = x @ v["stem"]
        return (h + v["scale"] * (jax.nn.gelu(h @ v["up"]) @ v["down"])) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def sinusoidal_positions():
    """Hidden units only: sines and cosines are constants that differ along the stream."""
    variables = weights(stem=(7, 6), up=(6, 9), down=(9, 6), head=(6, 2))
    positions = np.sin(np.arange(5)[:, None] / 10.0 ** np.arange(6))

    def function(v, x):
        h = x @ v["stem"] + positions
        return (h + jax.nn.gelu(h @ v["up"]) @ v["down"]) @ v["head"]

    return function, variables, (normal(*TOKENS),)


def tied_embedding():
    """Stream and hidden units; the vocabulary is an input (indices) and an output (logits)."""
    variables = weights(table=(11, 6), up=(6, 8), down=(8, 6))
    tokens = np.array([[1, 4, 0], [10, 3, 3]], np.int32)

    def function(v, tokens):
        h = v["table"][tokens]
        return (h + jax.nn.gelu(h @ v["up"]) @ v["down"]) @ v["table"].T

    return function, variables, (tokens,)


ATTENTION = {
    "fused_qkv_split": (fused_qkv_split, {10: 1, 4: 1, (4, 5): 2}),
    "fused_qkv_reshaped": (fused_qkv_reshaped, {10: 1, 4: 1, (4, 5): 2}),
    "shared_bias": (shared_bias, {6: 1, 4: 1, (4, 3): 1, (4, 9): 1, (4, 5): 1, (4, 7): 1}),
    "shared_mask": (shared_mask, {6: 1, 4: 2, (4, 3): 1, (4, 9): 1, (4, 5): 1, (4, 7): 1}),
    "multi_query": (multi_query, {6: 1, 4: 1, 3: 1, 5: 1}),
    "grouped_query": (grouped_query, {8: 1, 2: 1, (2, 3): 1, (2, 5): 1, (2, 9): 1}),
    "rotary": (rotary, {6: 1, 4: 1, (4, 3): 1}),
    "learned_queries": (learned_queries, {4: 1, 6: 1, 3: 1, 9: 1}),
    "mixer": (mixer, {6: 1, 9: 1, 11: 1}),
    "swiglu": (swiglu, {6: 1, 9: 1}),
    "fused_glu": (fused_glu, {6: 1, 9: 1}),
    "layer_scale": (layer_scale, {6: 1, 9: 1}),
    "sinusoidal_positions": (sinusoidal_positions, {9: 1}),
    "tied_embedding": (tied_embedding, {6: 1, 8: 1}),
}
