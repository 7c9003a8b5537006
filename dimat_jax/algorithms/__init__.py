"""The methods: each is one record, an `Algorithm`.

`base` has the record and its parts, `stepping` runs what a method does within a training step, and
`communication` counts what is sent. May import `merging`, `training`, `topology` and what stands
above them. Adding a method: a file with its record, and a line in `dimat_jax.registry`.
"""

from collections.abc import Mapping

from dimat_jax import registry
from dimat_jax.algorithms.base import Algorithm as Algorithm
from dimat_jax.algorithms.base import Exchange as Exchange
from dimat_jax.algorithms.base import Gossip as Gossip
from dimat_jax.algorithms.base import Merge as Merge
from dimat_jax.algorithms.base import Merged as Merged
from dimat_jax.algorithms.base import MergeRound as MergeRound
from dimat_jax.algorithms.base import Message as Message
from dimat_jax.algorithms.base import exchange_of as exchange_of
from dimat_jax.algorithms.base import exchanges as exchanges
from dimat_jax.algorithms.drift import with_drift_correction as with_drift_correction
from dimat_jax.algorithms.merging import common_frame as common_frame
from dimat_jax.algorithms.merging import neighbor_average as neighbor_average
from dimat_jax.algorithms.momentum import with_momentum as with_momentum
from dimat_jax.algorithms.outer import with_outer_optimizer as with_outer_optimizer

METHODS: Mapping[str, Algorithm] = registry.METHODS
"""What ``--methods`` takes, in the order of tables."""
