"""The methods by name. Adding one: add a file, and a line here.

A method is one record, an `Algorithm` (`base.py`); `stepping.py` runs what it does within a
training step. May import `merging`, `training`, `topology` and what stands above them.
"""

from dimat_jax.algorithms.base import (
    Algorithm,
    Exchange,
    Gossip,
    Merge,
    Merged,
    MergeRound,
    Message,
    exchanges,
)
from dimat_jax.algorithms.cross_gradient import cga
from dimat_jax.algorithms.d2 import d2
from dimat_jax.algorithms.fedavg import centralized, fedavg, local_sgd
from dimat_jax.algorithms.gossip import cdmsgd, cdsgd, dsgd, dsgd_nesterov
from dimat_jax.algorithms.gradient_tracking import gradient_tracking
from dimat_jax.algorithms.merging import (
    dimat,
    dimat_repair,
    final_dimat,
    final_wa,
    local_only,
    universe,
    wa,
    wa_published,
    wa_repair,
    wm,
)
from dimat_jax.algorithms.outer import with_outer_optimizer
from dimat_jax.algorithms.push_sum import sgp
from dimat_jax.algorithms.quasi_global import qg_dsgdm_n
from dimat_jax.algorithms.relay_sgd import relay_sgd

METHODS: dict[str, Algorithm] = {
    "local_only": local_only,
    "dimat": dimat,
    "wm": wm,
    "universe": universe,
    "wa": wa,
    "wa_published": wa_published,
    "final_dimat": final_dimat,
    "final_wa": final_wa,
    "dimat_repair": dimat_repair,
    "wa_repair": wa_repair,
    "cdsgd": cdsgd,
    "cdmsgd": cdmsgd,
    "sgp": sgp,
    "cga": cga,
    "dsgd": dsgd,
    "dsgd_nesterov": dsgd_nesterov,
    "d2": d2,
    "gradient_tracking": gradient_tracking,
    "qg_dsgdm_n": qg_dsgdm_n,
    "relay_sgd": relay_sgd,
    "local_sgd": local_sgd,
    "fedavg": fedavg,
    "centralized": centralized,
}
"""What ``--methods`` takes, in the order of tables."""

__all__ = [
    "METHODS",
    "Algorithm",
    "Exchange",
    "Gossip",
    "Merge",
    "MergeRound",
    "Merged",
    "Message",
    "exchanges",
    "with_outer_optimizer",
]
