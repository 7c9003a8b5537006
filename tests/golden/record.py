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

PLAIN = dict(
    topology="ring",
    round_rate=1.0,
    merge_at_end=False,
    merge_frame="own",
    align_every=1,
    evaluate_every=1,
    optimizer_after_merge="fresh",
)
MLP = dj.Config(
    **PLAIN,
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
    **PLAIN,
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


METHODS = """local_only dimat wa wm universe dimat_repair fedavg sparse_final_dimat centralized
cdsgd dsgd_nesterov sgp""".split()

CASES = {
    "mlp": replace(MLP, methods=tuple(METHODS)),
    "convnet": replace(CONVNET, methods=("dimat", "wa")),
    "mlp_optimizer_kept": replace(MLP, optimizer_after_merge="kept", optimizer="adam"),
    "mlp_reference": replace(MLP, merge_frame="reference", merge_at_end=True),
    "mlp_tree": replace(
        MLP, merge_frame="tree", align_every="once", optimizer_after_merge="averaged", proximal=0.1
    ),
    "mlp_digraph": replace(MLP, topology="digraph", methods=("sgp",)),
    "mlp_decay": replace(MLP, methods=("cga",), schedule="exponential"),
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
