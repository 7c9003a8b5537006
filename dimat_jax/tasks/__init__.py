"""What an agent learns: a loss of each example, metrics, and outputs that permutations must keep.

One file each. May import `models`, `registry` and `types`: it knows nothing of agents or graphs.
"""

from dimat_jax.tasks.classification import classification as classification
