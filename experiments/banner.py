"""What a command says of a run before it begins: what runs, on which data, and on what."""

import math
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from dimat_jax.simulation.setup import Setup


def print_banner(console: Console, setup: "Setup") -> None:
    """Says what is about to run, on which data, and how it is evaluated."""
    from dimat_jax.datasets import examples_of
    from dimat_jax.report.tables import counted
    from dimat_jax.simulation.setup import OWN

    config, data = setup.config, setup.data
    if data.stand_in_for is not None:
        console.print(f"NOT THE REAL DATA: {data.name}", style="bold red", soft_wrap=True)
    tests, examples = examples_of(data.test), setup.epoch_examples[1]
    some = min(config.test_examples or tests, tests)
    named = config.model if config.model == OWN else f"{config.model}, width {config.width:g}"
    lines = {
        "data": f"{data.name}, {config.partition}, {examples:,} of the "
        f"{examples_of(data.train):,} training examples for each agent",
        "model": f"{named}, {counted(len(setup.symmetries.groups), 'permutation group')}",
        "agents": f"{config.agents}, {setup.topology.name}, spectral gap "
        f"{setup.topology.spectral_gap:.3f}; devices: {setup.execution.mesh.size}",
        "training": f"{counted(config.pretrain_epochs, 'epoch')} apart, then "
        f"{counted(config.rounds, 'round')} of a merge and "
        f"{counted(config.epochs_per_round, 'epoch')}; {config.optimizer}, learning rate "
        f"{config.learning_rate:g}, batch {config.batch_size}",
        "merging": images_for_merging(setup),
        "evaluation": f"on {some:,} fixed test examples along the way, on all {tests:,} at the end",
        "kernels": about_kernels(setup),
        "results": str(config.out),
    }
    for name, text in lines.items():
        if text is not None:
            console.print(f"{name:>10}  {text}", soft_wrap=True)


def about_kernels(setup: "Setup") -> str | None:
    """Whether compiled kernels are used on the CPU, or how they can be; None on another device."""
    from dimat_jax.execution import kernels

    if setup.execution.mesh.devices.flat[0].platform != "cpu":
        return None
    version = kernels.installed_version()
    if version is None:
        return "none: pip install ./cpu_kernels has convolutions train 2 to 3 times as fast"
    if not kernels.switched_on():
        return f"none: dimat_jax_cpu {version} is switched off by {kernels.SWITCH}=0"
    if version != kernels.VERSION:
        return (
            f"none: dimat_jax_cpu {version} is not the {kernels.VERSION} that this needs, "
            "pip install ./cpu_kernels"
        )
    return f"dimat_jax_cpu {version}"


def images_for_merging(setup: "Setup") -> str:
    """On how many images units are compared and statistics recomputed: agents may hold too few."""
    from dimat_jax.simulation.examples import split_evenly

    config = setup.config
    held = min(rounds.shape[1] for _, rounds in setup.shards.values())

    def used(number: int, pool: int) -> str:
        return f"{math.prod(split_evenly(min(number, pool))):,}"

    if config.matching_data == "shared":
        text = (
            f"units compared on {used(config.matching_images, held * config.agents)} images of all"
        )
    else:
        text = f"units compared on {used(config.matching_images, held)} images of an agent's own"
    if config.recompute_statistics:
        text += f", statistics from {used(config.statistics_images, held)}"
    return text
