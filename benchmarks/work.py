"""What is measured: so many agents of one model, and data for them. Imports NumPy only."""

import dataclasses

import numpy as np

NUM_CLASSES = 10
IMAGE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Work:
    """A population that trains.

    Attributes:
      model: name in `dimat_jax.models`.
      width: multiplies its channels.
      agents: number of agents.
      batch: images in an agent's batch.
      steps: steps of an epoch.
      learning_rate: of SGD with momentum 0.9.
      backend: cpu, gpu or tpu; None: what JAX finds.
    """

    model: str = "resnet20"
    width: float = 1.0
    agents: int = 16
    batch: int = 32
    steps: int = 2
    learning_rate: float = 0.01
    backend: str | None = None

    @property
    def images(self) -> int:
        """Images that all agents together train on in an epoch."""
        return self.agents * self.steps * self.batch


def noise(examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images, uint8 ``[examples, 32, 32, 3]``, and labels, int32, in turn of every class.

    How long a step takes does not depend on what is in the images.
    """
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (examples, *IMAGE), np.uint8)
    return images, (np.arange(examples) % NUM_CLASSES).astype(np.int32)
