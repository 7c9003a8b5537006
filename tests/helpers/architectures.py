"""Small architectures with the permutation groups that they must have, by reasoning.

Each function returns `(function, variables, inputs)`. Its docstring says why its groups are those
in the table at the end, which gives how many groups there are of each size, `(*outer, size)` where
a group varies along others. Sizes are distinct, so that nothing agrees by accident. Axes of inputs
and outputs are never free. This file was written without looking at the rules (a held-out set).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from helpers.architectures_attention import ATTENTION
from helpers.architectures_helpers import convolve, dense, images, max_pool, normal, weights
from helpers.architectures_libraries import LIBRARIES
from helpers.architectures_loops import LOOPS
from helpers.architectures_more import MORE


def mlp():
    """One group a hidden layer; input features and classes are fixed."""
    variables = weights(a=(5, 11), a_bias=(11,), b=(11, 13), b_bias=(13,), c=(13, 3))

    def function(v, x):
        return dense(v, "b", dense(v, "a", x, jax.nn.relu), jnp.tanh) @ v["c"]

    return function, variables, (normal(2, 5),)


def lora():
    """The hidden layer, and the rank of the low-rank update `down @ up`, read by nothing else."""
    variables = weights(a=(5, 7), down=(5, 3), up=(3, 7), b=(7, 2))

    def function(v, x):
        return jax.nn.relu(x @ (v["a"] + v["down"] @ v["up"])) @ v["b"]

    return function, variables, (normal(2, 5),)


def tied_autoencoder():
    """The decoder reads the encoder's kernels transposed: its hidden layer is the encoder's."""
    variables = weights(a=(9, 7), b=(7, 5), decoder_bias=(7,))

    def function(v, x):
        code = jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"])
        return jnp.tanh(code @ v["b"].T + v["decoder_bias"]) @ v["a"].T

    return function, variables, (normal(3, 9),)


def siamese():
    """Hidden layer and embedding: the squared distance sums over the embedding."""
    variables = weights(a=(4, 6), b=(6, 5))

    def function(v, x, y):
        first, second = (jax.nn.relu(z @ v["a"]) @ v["b"] for z in (x, y))
        return jnp.square(first - second).sum(-1)

    return function, variables, (normal(2, 4), -normal(4, 2).T)


def ensemble():
    """Members may be exchanged (the output is their mean), each with its own hidden permutation."""
    variables = weights(a=(3, 5, 8), b=(3, 8, 2))

    def member(v, x):
        return jax.nn.relu(x @ v["a"]) @ v["b"]

    def function(v, x):
        return jax.vmap(member, (0, None))(v, x).mean(0)

    return function, variables, (normal(2, 5),)


def mixture_of_experts():
    """Residual stream, experts (softmax over them is symmetric), and each expert's hidden units."""
    variables = weights(stem=(5, 6), gate=(6, 4), up=(4, 6, 9), down=(4, 9, 6), head=(6, 2))

    def function(v, x):
        h = x @ v["stem"]
        hidden = jax.nn.relu(jnp.einsum("bd,edh->beh", h, v["up"]))
        gates = jax.nn.softmax(h @ v["gate"])
        return (h + jnp.einsum("beh,ehd,be->bd", hidden, v["down"], gates)) @ v["head"]

    return function, variables, (normal(2, 5),)


def spectral_norm():
    """The hidden layer, with both kernels' axes and the stored vector `u` of the first."""
    variables = weights(a=(5, 6), u=(6,), b=(6, 3), u_out=(3,))

    def normalised(kernel, u):
        v = kernel @ u / jnp.linalg.norm(kernel @ u)
        return kernel / (v @ kernel @ u)

    def function(v, x):
        return jax.nn.relu(x @ normalised(v["a"], v["u"])) @ normalised(v["b"], v["u_out"])

    return function, variables, (normal(2, 5),)


def weight_standardisation():
    """One group a convolution: kernels are standardised over all axes but the output channels."""
    variables = weights(a=(3, 3, 3, 6), b=(3, 3, 6, 7), head=(7, 2))

    def standardised(kernel):
        mean = kernel.mean((0, 1, 2), keepdims=True)
        return (kernel - mean) / (kernel.std((0, 1, 2), keepdims=True) + 1e-5)

    def function(v, x):
        h = jax.nn.relu(convolve(x, standardised(v["a"])))
        return jax.nn.relu(convolve(h, standardised(v["b"]))).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def densenet():
    """Stem and each layer's new channels; a norm's parameters on the concatenation are segments."""
    variables = weights(
        stem=(3, 3, 3, 4), scale=(4,), a=(3, 3, 4, 3), scale2=(7,), b=(3, 3, 7, 5), head=(12, 2)
    )

    def function(v, x):
        h = convolve(x, v["stem"])
        h = jnp.concatenate([h, convolve(jax.nn.relu(h * v["scale"]), v["a"])], -1)
        h = jnp.concatenate([h, convolve(jax.nn.relu(h * v["scale2"]), v["b"])], -1)
        return jax.nn.relu(h).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def inception():
    """The three branches' outputs (segments of what follows), one bottleneck, the last layer."""
    variables = weights(
        one=(1, 1, 3, 3), narrow=(1, 1, 3, 2), wide=(3, 3, 2, 5), pooled=(1, 1, 3, 4),
        after=(3, 3, 12, 7), head=(7, 2),
    )  # fmt: skip

    def function(v, x):
        pool = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9
        wide = convolve(jax.nn.relu(convolve(x, v["narrow"])), v["wide"])
        branches = [convolve(x, v["one"]), wide, convolve(pool, v["pooled"])]
        h = convolve(jax.nn.relu(jnp.concatenate(branches, -1)), v["after"])
        return jax.nn.relu(h).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def unet():
    """Skip (a segment of the concatenation), bottom, last; upsampling repeats positions only."""
    variables = weights(a=(3, 3, 3, 4), b=(3, 3, 4, 6), c=(3, 3, 10, 5), head=(5, 2))

    def function(v, x):
        skip = jax.nn.relu(convolve(x, v["a"]))
        down = jax.lax.reduce_window(
            skip, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
        )
        bottom = jax.nn.relu(convolve(down, v["b"]))
        up = jnp.repeat(jnp.repeat(bottom, 2, 1), 2, 2)
        return jax.nn.relu(convolve(jnp.concatenate([skip, up], -1), v["c"])) @ v["head"]

    return function, variables, (images(),)


def squeeze_and_excitation():
    """Residual stream, expanded channels (with depthwise kernel and gate), squeezed ones."""
    variables = weights(
        stem=(3, 6), expand=(6, 10), depthwise=(3, 3, 1, 10), squeeze=(10, 4), excite=(4, 10),
        project=(10, 6), head=(6, 2),
    )  # fmt: skip

    def function(v, x):
        h = x @ v["stem"]
        wide = convolve(jax.nn.relu(h @ v["expand"]), v["depthwise"], groups=10)
        gate = jax.nn.sigmoid(jax.nn.relu(wide.mean((1, 2)) @ v["squeeze"]) @ v["excite"])
        h = h + (wide * gate[:, None, None, :]) @ v["project"]
        return jax.nn.relu(h).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def grouped_convolution():
    """The convolution's groups (in and out together), each one's own inputs and own outputs."""
    variables = weights(stem=(3, 12), grouped=(3, 3, 4, 15), head=(15, 2))

    def function(v, x):
        h = convolve(jax.nn.relu(x @ v["stem"]), v["grouped"], groups=3)
        return jax.nn.relu(h).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def _shuffled(groups: int, variables: dict) -> tuple:
    def function(v, x):
        h = jax.nn.relu(convolve(jax.nn.relu(x @ v["stem"]), v["a"], groups))
        h = h.reshape(*h.shape[:-1], groups, -1)
        h = jnp.swapaxes(h, -1, -2).reshape(*h.shape[:-2], -1)
        return jax.nn.relu(convolve(h, v["b"], groups)).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def channel_shuffle():
    """Channels between the convolutions are 2 (first's groups) x 2 (second's groups) x 3.

    Besides these three factors: each first group's six inputs, each second group's five outputs.
    """
    return _shuffled(2, weights(stem=(3, 12), a=(1, 1, 6, 12), b=(1, 1, 6, 10), head=(10, 2)))


def channel_shuffle_across():
    """3 x 4 channels shuffled to 4 x 3 and regrouped 3 x 4: no common factors, so frozen.

    Left are each first group's four inputs and each second group's five outputs.
    """
    return _shuffled(3, weights(stem=(3, 12), a=(1, 1, 4, 12), b=(1, 1, 4, 15), head=(15, 2)))


def pixel_shuffle():
    """The 20 channels are 2 x 2 positions (fixed by the next window) x 5; then the last layer."""
    variables = weights(a=(3, 3, 3, 20), b=(3, 3, 5, 7), head=(7, 2))

    def function(v, x):
        h = jax.nn.relu(convolve(x, v["a"]))
        batch, height, width, _ = h.shape
        h = h.reshape(batch, height, width, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5)
        h = h.reshape(batch, 2 * height, 2 * width, 5)
        return jax.nn.relu(convolve(h, v["b"])).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def max_pool_flatten():
    """One group a convolution; the flattened height x width x channels axis keeps its channels."""
    variables = weights(a=(3, 3, 3, 6), b=(3, 3, 6, 7), head=(63, 2))

    def function(v, x):
        h = jax.nn.relu(convolve(x, v["a"]))
        return jax.nn.relu(convolve(max_pool(h), v["b"])).reshape(2, -1) @ v["head"]

    return function, variables, (images(),)


def global_max():
    """One group a convolution: the maximum runs over positions, not channels."""
    variables = weights(a=(3, 3, 3, 6), b=(3, 3, 6, 5), head=(5, 2))

    def function(v, x):
        return convolve(jax.nn.relu(convolve(x, v["a"])), v["b"]).max((1, 2)) @ v["head"]

    return function, variables, (images(),)


def group_norm():
    """Twelve channels in three groups: the groups, and each group's own four channels."""
    variables = weights(a=(3, 3, 3, 12), scale=(12,), bias=(12,), head=(12, 2))

    def function(v, x):
        h = convolve(x, v["a"])
        grouped = h.reshape(*h.shape[:-1], 3, 4)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        spread = jnp.sqrt(jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True) + 1e-5)
        h = ((grouped - mean) / spread).reshape(h.shape) * v["scale"] + v["bias"]
        return jax.nn.relu(h).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


class Architecture(NamedTuple):
    """How to make one, and how many groups of each size, ``(*outer, size)`` if varying, it has."""

    make: Callable[[], tuple[Callable, Any, tuple]]
    groups: dict[int | tuple[int, ...], int]


ARCHITECTURES = {
    "mlp": Architecture(mlp, {11: 1, 13: 1}),
    "lora": Architecture(lora, {7: 1, 3: 1}),
    "tied_autoencoder": Architecture(tied_autoencoder, {7: 1, 5: 1}),
    "siamese": Architecture(siamese, {6: 1, 5: 1}),
    "ensemble": Architecture(ensemble, {3: 1, (3, 8): 1}),
    "mixture_of_experts": Architecture(mixture_of_experts, {6: 1, 4: 1, (4, 9): 1}),
    "spectral_norm": Architecture(spectral_norm, {6: 1}),
    "weight_standardisation": Architecture(weight_standardisation, {6: 1, 7: 1}),
    "densenet": Architecture(densenet, {4: 1, 3: 1, 5: 1}),
    "inception": Architecture(inception, {3: 1, 2: 1, 5: 1, 4: 1, 7: 1}),
    "unet": Architecture(unet, {4: 1, 6: 1, 5: 1}),
    "squeeze_and_excitation": Architecture(squeeze_and_excitation, {6: 1, 10: 1, 4: 1}),
    "grouped_convolution": Architecture(grouped_convolution, {3: 1, (3, 4): 1, (3, 5): 1}),
    "channel_shuffle": Architecture(channel_shuffle, {2: 2, (2, 6): 1, (2, 2, 3): 1, (2, 5): 1}),
    "channel_shuffle_across": Architecture(channel_shuffle_across, {(3, 4): 1, (3, 5): 1}),
    "pixel_shuffle": Architecture(pixel_shuffle, {5: 1, 7: 1}),
    "max_pool_flatten": Architecture(max_pool_flatten, {6: 1, 7: 1}),
    "global_max": Architecture(global_max, {6: 1, 5: 1}),
    "group_norm": Architecture(group_norm, {3: 1, (3, 4): 1}),
    **{name: Architecture(*row) for name, row in (ATTENTION | LIBRARIES | LOOPS | MORE).items()},
}
