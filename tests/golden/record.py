"""Records the rows of small runs, one file a case, beside this module.

    python tests/golden/record.py [CASE ...]

Record again only where a change is meant to change numbers, and say in the commit which and why.
"""

import json
import pathlib
import sys

import jax

import dimat_jax as dj

FOLDER = pathlib.Path(__file__).parent
CLOCK = ("seconds", "images_per_second")
"""What differs from run to run."""

MLP = dj.Config(
    agents=4,
    dataset="digits",
    model="mlp",
    width=0.125,
    examples_per_agent=100,
    pretrain_epochs=2,
    rounds=2,
    batch_size=20,
    learning_rate=0.02,
    matching_images=64,
    statistics_images=64,
    test_examples=200,
    methods=("dimat",),
)
CONVNET = dj.Config(
    agents=4,
    dataset="shapes",
    width=0.25,
    examples_per_agent=60,
    pretrain_epochs=1,
    rounds=1,
    batch_size=20,
    matching_images=40,
    statistics_images=40,
    test_examples=100,
    methods=("dimat",),
)


def replace(config: dj.Config, **options) -> dj.Config:
    """The configuration with some options of its own."""
    return dj.Config(**{**vars(config), **options})


METHODS = """dimat wa wa_published wm universe final_wa final_dimat dimat_repair wa_repair local_sgd
fedavg centralized cdsgd cdmsgd dsgd dsgd_nesterov sgp cga d2 gradient_tracking qg_dsgdm_n
relay_sgd""".split()

CASES = {
    "mlp": replace(MLP, methods=tuple(METHODS)),
    "convnet": replace(CONVNET, methods=("dimat", "wa", "wm", "dsgd_nesterov")),
    "mlp_optimizer_kept": replace(MLP, optimizer_after_merge="kept", optimizer="adam"),
    "mlp_first_frame": replace(MLP, topology="fully_connected", merge_frame="first"),
    "mlp_digraph": replace(MLP, topology="digraph", methods=("sgp",)),
    "mlp_decay": replace(MLP, methods=("cga", "dimat"), schedule="exponential"),
    "mlp_one_peer": replace(MLP, topology="one_peer_exponential", partition="dirichlet"),
}
"""Name → the run, in float64."""


def rows(name: str) -> list[dict]:
    """Runs a case in float64; its rows without what depends on the clock."""
    with jax.enable_x64(True):
        history = dj.simulate(CASES[name]).history
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in history]


def recorded(name: str) -> list[dict]:
    """The rows of a case as they were recorded."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def main(names: list[str]) -> None:
    """Records these cases, or all."""
    for name in names or CASES:
        text = "".join(json.dumps(row) + "\n" for row in rows(name))
        (FOLDER / f"{name}.jsonl").write_text(text)
        print(name)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(sys.argv[1:])
