"""The methods by name. Adding one: add a file, and its name here."""

from dimat_jax.algorithms.base import (
    Algorithm,
    Exchange,
    Frame,
    Gossip,
    Merge,
    Merged,
    MergeRound,
    Sends,
    exchanges,
)
from dimat_jax.algorithms.cross_gradient import cross_gradient_aggregation
from dimat_jax.algorithms.d2 import exact_diffusion
from dimat_jax.algorithms.fedavg import centralized_sgd, federated_averaging, local_sgd
from dimat_jax.algorithms.gossip import mix_then_step, step_then_mix
from dimat_jax.algorithms.gradient_tracking import tracking
from dimat_jax.algorithms.merging import MERGING, dimat, merging, wa
from dimat_jax.algorithms.push_sum import stochastic_gradient_push
from dimat_jax.algorithms.quasi_global import quasi_global_momentum
from dimat_jax.algorithms.relay_sgd import relay

METHODS: dict[str, Algorithm] = {
    **MERGING,
    "local_sgd": local_sgd(),
    "fedavg": federated_averaging(),
    "centralized": centralized_sgd(),
    "cdsgd": mix_then_step(),
    "cdmsgd": mix_then_step(momentum=0.9),
    "dsgd": step_then_mix(),
    "dsgd_nesterov": step_then_mix(momentum=0.9, nesterov=True),
    "sgp": stochastic_gradient_push(),
    "cga": cross_gradient_aggregation(),
    "d2": exact_diffusion(),
    "gradient_tracking": tracking(),
    "qg_dsgdm_n": quasi_global_momentum(),
    "relay_sgd": relay(),
}
"""What ``--methods`` takes."""

__all__ = [
    "METHODS",
    "Algorithm",
    "Exchange",
    "Frame",
    "Gossip",
    "Merge",
    "MergeRound",
    "Merged",
    "Sends",
    "centralized_sgd",
    "cross_gradient_aggregation",
    "dimat",
    "exact_diffusion",
    "exchanges",
    "federated_averaging",
    "local_sgd",
    "merging",
    "mix_then_step",
    "quasi_global_momentum",
    "relay",
    "step_then_mix",
    "stochastic_gradient_push",
    "tracking",
    "wa",
]
