"""Operations and bytes, counted in jaxprs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax.estimate.work import work_of


def work(function, *shapes):
    return work_of(jax.make_jaxpr(function)(*(jnp.zeros(shape, jnp.float32) for shape in shapes)))


def test_a_product_multiplies_and_adds_for_each_entry():
    found = work(lambda a, b: a @ b, (3, 5), (5, 7))
    assert found == (2 * 3 * 5 * 7, 4 * (15 + 35 + 21))


def test_a_batched_product_counts_each():
    assert work(jax.vmap(jnp.matmul), (4, 3, 5), (4, 5, 7)).operations == 4 * 2 * 3 * 5 * 7


def test_a_convolution_counts_its_window():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert work(convolve, (2, 8, 8, 3), (3, 3, 3, 16)).operations == 2 * (2 * 64 * 16) * 27


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_of_a_convolution_is_about_twice_the_convolution(stride):
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)

    shapes = (2, 16, 16, 8), (3, 3, 8, 8)
    forward = work(convolve, *shapes).operations
    both = work(jax.grad(lambda x, k: convolve(x, k).sum(), (0, 1)), *shapes).operations
    # The forward pass is not needed for a sum's gradient, and is traced all the same.
    assert both == pytest.approx(3 * forward, rel=0.15)


def test_a_loop_counts_each_turn_and_what_it_carries():
    def loop(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=6)[0]

    carried = 2 * 4 * 9
    assert work(loop, (3, 3), (3, 3)) == (6 * 2 * 27, 6 * (carried + 4 * 27))


def test_of_branches_the_one_that_works_most_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert work(either, (3, 3)).operations == 2 * 2 * 27


def test_a_sharded_function_counts_on_all_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("agents",))
    spec = jax.sharding.PartitionSpec("agents")
    function = jax.shard_map(jax.vmap(jnp.matmul), mesh=mesh, in_specs=spec, out_specs=spec)
    assert work(jax.jit(function), (8, 3, 3), (8, 3, 3)).operations == 8 * 2 * 27
