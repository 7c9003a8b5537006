"""Rows of an invented run, for the tests of the report."""

import numpy as np

from dimat_jax.metrics import Row


def row(method, seed, round, epoch, phase, agents, bytes_sent=0.0, **fields) -> Row:
    """A row whose mean and standard deviation follow from the agents' accuracies."""
    return {
        "method": method,
        "seed": seed,
        "round": round,
        "epoch": epoch,
        "phase": phase,
        "test_accuracy": float(np.mean(agents)),
        "test_accuracy_std": float(np.std(agents, ddof=1)) if len(agents) > 1 else 0.0,
        "test_accuracy_agents": list(agents),
        "test_accuracy_classes": [[float(accuracy)] * 2 for accuracy in agents],
        "merged_accuracy": None,
        "test_loss": 1.0,
        "test_loss_std": 0.0,
        "test_loss_agents": [1.0] * len(agents),
        "merged_loss": None,
        "train_loss": None,
        "consensus_distance": 0.5,
        "consensus_distance_aligned": None,
        "units_moved": None,
        "bytes_sent": bytes_sent,
        "images_per_second": None,
        "seconds": {},
    } | fields


def run(seeds=(0, 1), rounds=3, agents=4) -> list[Row]:
    """A run of dimat and wa: dimat gains 0.01 with each phase, wa falls at each merge.

    Agents differ by 0.01, seeds by 0.02.
    """
    rows = []
    for seed in seeds:
        spread = np.arange(agents) * 0.01 + seed * 0.02
        for epoch in (1, 2):
            speed = {"images_per_second": 1000.0, "seconds": {"compile": 3.0, "train": 2.0}}
            rows.append(
                row("pretrain", seed, 0, epoch, "pretrain", 0.2 + 0.1 * epoch + spread, **speed)
            )
        for method, drop in (("dimat", 0.0), ("wa", 0.25)):
            for round in range(1, rounds + 1):
                sent = 2e6 * round
                level = 0.4 + 0.02 * round + spread
                seconds = {"match": 0.5, "assign": 0.25} if method == "dimat" else {"mix": 0.125}
                merge = {"bytes_sent": sent, "seconds": seconds}
                rows.append(
                    row(method, seed, round, 1 + round, "merge", level - drop / round, **merge)
                )
                train = {"bytes_sent": sent, "images_per_second": 500.0, "seconds": {"train": 1.0}}
                rows.append(row(method, seed, round, 2 + round, "train", level + 0.01, **train))
    return rows
