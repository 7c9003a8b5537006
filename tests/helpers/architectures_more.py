"""More small architectures, found odd enough to try once the rules stood.

As in `architectures`: each docstring says why the groups are those in the table at the end.
"""

import jax
import jax.numpy as jnp

from helpers.architectures_helpers import convolve, images, normal, weights


def selective_scan():
    """Mamba's layer: the channels, and the units of the state (summed over at each step)."""
    variables = weights(stem=(4, 6), a=(6, 3), b=(4, 3), c=(4, 3), delta=(6,), head=(6, 2))

    def function(v, x):
        u = x @ v["stem"]
        delta = jax.nn.softplus(u + v["delta"])

        def step(state, now):
            u, delta, b, c = now
            decay = jnp.exp(-delta[..., None] * jnp.exp(v["a"]))
            state = decay * state + (delta * u)[..., None] * b[:, None]
            return state, jnp.einsum("bds,bs->bd", state, c)

        by_time = [z.swapaxes(0, 1) for z in (u, delta, x @ v["b"], x @ v["c"])]
        _, y = jax.lax.scan(step, jnp.zeros((2, 6, 3)), tuple(by_time))
        return y.swapaxes(0, 1) @ v["head"]

    return function, variables, (normal(2, 5, 4),)


def linear_recurrence():
    """The channels: an associative scan runs over time."""
    variables = weights(stem=(4, 7), gate=(4, 7), head=(7, 2))

    def function(v, x):
        def after(early, late):
            return early[0] * late[0], late[0] * early[1] + late[1]

        pair = jax.nn.sigmoid(x @ v["gate"]), x @ v["stem"]
        return jax.lax.associative_scan(after, pair, axis=1)[1] @ v["head"]

    return function, variables, (normal(2, 6, 4),)


def patch_merging():
    """Swin's downsampling: four strided views side by side carry the stem's channels each."""
    variables = weights(stem=(3, 4), merge=(16, 7), head=(7, 2))

    def function(v, x):
        h = jnp.tanh(x @ v["stem"])
        views = [h[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return jax.nn.relu(jnp.concatenate(views, -1) @ v["merge"]).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def transposed_convolution():
    """Encoder, bottom and decoder channels; the skip is a segment of what the last layer reads."""
    variables = weights(
        down=(3, 3, 3, 4), bottom=(3, 3, 4, 6), up=(2, 2, 6, 5), last=(3, 3, 9, 7), head=(7, 2)
    )

    def function(v, x):
        skip = jax.nn.relu(convolve(x, v["down"]))
        low = jax.nn.relu(convolve(skip, v["bottom"]))[:, ::2, ::2]
        high = jax.lax.conv_transpose(low, v["up"], (2, 2), "SAME")
        h = convolve(jnp.concatenate([skip, high], -1), v["last"])
        return jax.nn.relu(h).mean((1, 2)) @ v["head"]

    return function, variables, (images(),)


def bilinear():
    """A tensor reads the hidden layer twice: one group on two of its axes; then its outputs."""
    variables = weights(a=(4, 6), tensor=(6, 6, 5), head=(5, 2))

    def function(v, x):
        h = jnp.tanh(x @ v["a"])
        return jnp.einsum("bi,bj,ijk->bk", h, h, v["tensor"]) @ v["head"]

    return function, variables, (normal(3, 4),)


def radial_basis():
    """The centres."""
    variables = weights(centres=(6, 4), widths=(6,), head=(6, 2))

    def function(v, x):
        distance = jnp.square(x[:, None] - v["centres"]).sum(-1)
        return jnp.exp(-distance * jnp.square(v["widths"])) @ v["head"]

    return function, variables, (normal(3, 4),)


def gradient_step():
    """MAML's adapted network: the gradient of a loss has its parameters' groups."""
    variables = weights(a=(4, 6), b=(6, 5), head=(5, 2))

    def network(v, x):
        return jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["head"]

    def function(v, x):
        gradient = jax.grad(lambda v: jnp.square(network(v, x)).sum())(v)
        return network(jax.tree.map(lambda p, g: p - 0.1 * g, v, gradient), x)

    return function, variables, (normal(3, 4),)


def flat_parameters():
    """All parameters in one vector, concatenated and cut again, as a hypernetwork gives them."""
    variables = weights(a=(4, 6), b=(6, 5), head=(5, 2))

    def function(v, x):
        flat = 1.1 * jnp.concatenate([v[name].ravel() for name in ("a", "b", "head")])
        a, b, head = flat[:24].reshape(4, 6), flat[24:54].reshape(6, 5), flat[54:].reshape(5, 2)
        return jnp.tanh(jnp.tanh(x @ a) @ b) @ head

    return function, variables, (normal(3, 4),)


def equilibrium():
    """A fixed point by a while loop, whose condition is symmetric in the units."""
    variables = weights(a=(4, 6), head=(6, 2))

    def function(v, x):
        u = x @ v["a"]

        def following(z):
            return jnp.tanh(0.3 * z + u)

        def goes_on(z):
            return jnp.abs(z - following(z)).max() > 1e-12

        return jax.lax.while_loop(goes_on, following, jnp.zeros_like(u)) @ v["head"]

    return function, variables, (normal(3, 4),)


def routed_experts():
    """Stream and each expert's own hidden units; the two best of four experts fix their order."""
    variables = weights(stem=(5, 6), gate=(6, 4), up=(4, 6, 7), down=(4, 7, 6), head=(6, 2))

    def function(v, x):
        h = x @ v["stem"]
        weight, best = jax.lax.top_k(h @ v["gate"], 2)
        chosen = jnp.einsum("bk,bke->be", jax.nn.softmax(weight), jax.nn.one_hot(best, 4))
        hidden = jax.nn.relu(jnp.einsum("bd,edh->beh", h, v["up"]))
        return (h + jnp.einsum("beh,ehd,be->bd", hidden, v["down"], chosen)) @ v["head"]

    return function, variables, (normal(2, 5),)


MORE = {
    "selective_scan": (selective_scan, {6: 1, 3: 1}),
    "linear_recurrence": (linear_recurrence, {7: 1}),
    "patch_merging": (patch_merging, {4: 1, 7: 1}),
    "transposed_convolution": (transposed_convolution, {4: 1, 6: 1, 5: 1, 7: 1}),
    "bilinear": (bilinear, {6: 1, 5: 1}),
    "radial_basis": (radial_basis, {6: 1}),
    "gradient_step": (gradient_step, {6: 1, 5: 1}),
    "flat_parameters": (flat_parameters, {6: 1, 5: 1}),
    "equilibrium": (equilibrium, {6: 1}),
    "routed_experts": (routed_experts, {6: 1, (4, 7): 1}),
}
