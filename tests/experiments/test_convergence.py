"""The problem is as smooth as it says, and known exponents are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_studies

import dimat_jax as dj
from experiments import convergence
from experiments.reports import convergence as convergence_report


def test_the_problem_is_as_smooth_as_it_says():
    task, data = convergence.committee(), convergence.examples(64, 0)
    assert np.abs(data.train["targets"]).max() <= 1
    np.testing.assert_allclose(np.linalg.norm(data.train["inputs"], axis=1), 1, rtol=1e-5)

    def loss(flat, example):
        params = {"hidden": flat.reshape(convergence.INPUTS, convergence.UNITS)}
        batch = jax.tree.map(lambda x: x[example][None], data.train)
        return task.loss({"params": params}, batch)[0].mean()

    hessian = jax.jit(jax.hessian(loss), static_argnums=1)
    rng, largest = np.random.default_rng(0), 0.0
    for scale in (0.0, 0.3, 1.0, 3.0):
        flat = jnp.asarray(scale * rng.standard_normal(convergence.INPUTS * convergence.UNITS))
        largest = max(largest, float(np.abs(np.linalg.eigvalsh(hessian(flat, 0))).max()))
    assert 0.3 < largest <= 1  # the bound holds, and is no empty one
    # Units may be permuted: it is not convex, and DIMAT has something to align.
    variables = task.init(jax.random.key(0), data.train)
    found = dj.find_symmetries(task.outputs, variables, jax.tree.map(lambda x: x[:2], data.train))
    assert [group.size for group in found.groups.values()] == [convergence.UNITS]


def test_known_exponents_are_fitted():
    rng = np.random.default_rng(0)
    rows = [
        {
            "method": method,
            "agents": n,
            "steps": k,
            "seed": seed,
            "gradient": 3**seed * n**-0.5 * k**-0.25 * np.exp(0.01 * rng.standard_normal()),
            "last": 1.0 / (n * k),
        }
        for method in convergence.METHODS
        for n in (2, 4, 8)
        for k in (100, 1000)
        for seed in range(3)
    ]
    of_agents, of_steps = convergence_report.fits(rows)
    assert of_agents.exponent == pytest.approx(-0.5, abs=0.01)
    assert of_steps.exponent == pytest.approx(-0.25, abs=0.01)
    assert 0 < of_agents.high - of_agents.low < 0.05
    assert convergence_report.fits(rows, "last")[0].exponent == pytest.approx(-1)
    assert convergence_report.exponents(rows).rows[0][0] == "dsgd"


def test_a_study_from_end_to_end(tmp_path):
    study = convergence.Study((2, 4), (32, 64), 32, 1)
    cells, text = small_studies.run(convergence, study, tmp_path)
    assert len(cells) == 4
    assert "| agents | dsgd, K = 32" in text
