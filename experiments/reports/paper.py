"""The comparison as Markdown, as CSV and as pictures: what `experiments.paper` has found."""

import csv
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from dimat_jax.metrics import PRETRAINING, Row, Stage, last_rows, spread, values_of
from dimat_jax.registry import METHODS
from dimat_jax.report.figures import COLORS, STYLES, curve
from dimat_jax.report.leads import ALONE, Lead, lead
from dimat_jax.report.tables import EMPTY, Table, megabytes, to_markdown
from experiments.grid import Cell, Outcome, Setting, provenance
from experiments.presets import REFERENCES
from experiments.reports.values import ahead, sure

END = "end, all tests"

Runs = Mapping[int, Outcome]
"""Seed → what the cell gave."""

PUBLISHED = {
    ("cifar100", "iid", "fully_connected", 5, "resnet20", 8.0): {
        "dimat": "73.99",
        "sgp": "41.39",
        "cdsgd": "39.69",
        "cga": "35.04",
        "wa_published": "35.04",
    },
    ("cifar100", "iid", "ring", 5, "resnet20", 8.0): {"dimat": "67.12 ± 0.22"},
}
"""Accuracies in % of arXiv 2404.08079, of agents pretrained apart: a setting without its regime →
method → figure. Its WA does not recompute BatchNorm statistics."""


class Line(NamedTuple):
    """A method in a setting; accuracies of all agents of all seeds, 0 to 1.

    Attributes:
      merged: right after the first merge, if it merges before the first round.
      first: after the first round's training.
      trained: after the last training.
      end: at the end, on all test images: after a last merge, where one ends the run.
      mean_model: of the mean of all agents' networks at the end, of each seed.
      over_trained: ahead of agents alone after the last training, paired by seed.
      over_end: likewise at the end.
      bytes_sent: by an agent, in the mean.
    """

    method: str
    merged: Float[np.ndarray, " agents"]
    first: Float[np.ndarray, " agents"]
    trained: Float[np.ndarray, " agents"]
    end: Float[np.ndarray, " agents"]
    mean_model: Float[np.ndarray, " seeds"]
    over_trained: Lead | None
    over_end: Lead | None
    bytes_sent: float


def by_setting(outcomes: Sequence[tuple[Cell, Outcome]]) -> dict[Setting, dict[int, Outcome]]:
    """Gathers the seeds of every setting."""
    found: dict[Setting, dict[int, Outcome]] = {}
    for cell, outcome in outcomes:
        found.setdefault(cell.setting, {})[cell.seed] = outcome
    return found


def rows_of(runs: Runs) -> list[Row]:
    """The rows of all seeds."""
    return [row for outcome in runs.values() for row in outcome.rows]


def methods_in(runs: Runs) -> list[str]:
    """The methods that some seed finished, in the order of tables."""
    ran = {method for outcome in runs.values() for method in outcome.all_tests}
    return [method for method in METHODS if method in ran]


def last_trained(rows: Sequence[Row], method: str) -> dict[int, Row]:
    """Seed → the row after the method's last training."""
    stages = last_rows(rows, method)
    trained = [stage for stage in stages if stage.phase == "train"]
    return stages[trained[-1]] if trained else {}


def means_as_trained(runs: Runs, method: str) -> dict[int, float]:
    """Seed → the mean of `Line.trained`."""
    done = [outcome for outcome in runs.values() if method in outcome.all_tests]
    rows = last_trained([row for outcome in done for row in outcome.rows], method)
    return {seed: row["test_accuracy"] for seed, row in rows.items()}


def means_at_end(runs: Runs, method: str) -> dict[int, float]:
    """Seed → the agents' mean accuracy at the end."""
    done = {seed: o.all_tests[method] for seed, o in runs.items() if method in o.all_tests}
    return {seed: float(np.mean(values)) for seed, values in done.items()}


def line(runs: Runs, method: str) -> Line:
    """What a table says of a method."""
    done = [outcome for outcome in runs.values() if method in outcome.all_tests]
    rows = [row for outcome in done for row in outcome.rows]
    stages = last_rows(rows, method)
    merged, first = (stages.get(Stage(1, phase), {}) for phase in ("merge", "train"))
    trained = last_trained(rows, method)
    last = {row["seed"]: row for row in rows if row["method"] == method}.values()
    merge, end = (
        lead(found(runs, method), found(runs, ALONE)) if method != ALONE else None
        for found in (means_as_trained, means_at_end)
    )
    return Line(
        method,
        values_of(merged) if merged else np.array([]),
        values_of(first) if first else np.array([]),
        values_of(trained) if trained else np.array([]),
        np.concatenate([outcome.all_tests[method] for outcome in done]),
        np.array([row["merged_accuracy"] for row in last if row.get("merged_accuracy")]),
        merge,
        end,
        float(np.mean([row["bytes_sent"] for row in last])) if last else 0.0,
    )


def shown(values: Float[np.ndarray, " values"]) -> str:
    """Mean ± standard deviation of shares in per cent; no deviation of one; a dash for none."""
    std = spread(100 * values)
    deviation = "" if std is None else f" ± {std:.1f}"
    return f"{100 * values.mean():.1f}{deviation}" if len(values) else EMPTY


def table_of(setting: Setting, runs: Runs) -> Table:
    """One setting's methods, best first at the end."""
    published = published_in(setting)
    lines = sorted((line(runs, m) for m in methods_in(runs)), key=lambda x: -x.end.mean())
    body = [
        [
            METHODS[found.method].label + some_seeds(runs, found.method),
            *map(shown, (found.merged, found.first, found.trained, found.end)),
            shown(found.mean_model),
            ahead(found.over_trained),
            ahead(found.over_end),
            megabytes(found.bytes_sent),
            published.get(found.method, EMPTY),
        ]
        for found in lines
    ]
    diverged = {method for outcome in runs.values() for method in outcome.diverged}
    for method in sorted(diverged - set(methods_in(runs))):
        body.append([METHODS[method].label, EMPTY, *["diverged"] * 3, *[EMPTY] * 5])
    columns = ["method", "after merge 1", "after round 1", "after the last training", "at the end"]
    columns += ["mean model", "over Alone, as trained", "over Alone, at the end"]
    columns += ["MB sent", "published"]
    return Table(title(setting), columns, body)


def shards_table(runs: Runs) -> Table:
    """Accuracy of each agent on the classes of each agent's shard, after the last training."""
    body = []
    for method in methods_in(runs):
        found = last_trained(rows_of(runs), method).values()
        if not found:
            continue
        # [seeds, agents, classes]; class c is that of agent c mod agents (`partition.by_class`).
        accuracy = np.mean([row["test_accuracy_classes"] for row in found], axis=0)
        agents, classes = accuracy.shape
        shards = [accuracy[:, shard::agents].mean(1) for shard in range(min(agents, classes))]
        by_shard = 100 * np.stack(shards, 1)
        own = np.eye(*by_shard.shape, dtype=bool)
        matrix = "; ".join(" ".join(f"{x:.0f}" for x in row) for row in by_shard)
        means = (f"{by_shard[where].mean():.1f}" for where in (own, ~own))
        body.append([METHODS[method].label, *means, matrix])
    title = (
        "Accuracy in % after the last training, mean over seeds, on the classes of an agent's own "
        "shard and of the others'; and each agent (in turn) on the classes of each shard"
    )
    return Table(title, ["method", "own shard", "other shards", "agent by shard"], body)


def distances_table(runs: Runs) -> Table:
    """How far networks stay apart, as they are and modulo permutation, after each training."""
    body, stages = [], []
    for method in methods_in(runs):
        found = {
            k: rows for k, rows in last_rows(rows_of(runs), method).items() if k.phase == "train"
        }
        stages = stages or [f"round {stage.round}" for stage in found]
        pairs = [
            [mean_distance(rows.values(), name) for rows in found.values()]
            for name in ("consensus_distance", "consensus_distance_aligned")
        ]
        cells = (
            raw if aligned == EMPTY else f"{raw} / {aligned}"
            for raw, aligned in zip(*pairs, strict=True)
        )
        body.append([METHODS[method].label, *cells])
    title = (
        "Consensus distance after the training of a round; after a stroke modulo permutation, "
        "where merges have aligned units; mean over seeds"
    )
    return Table(title, ["method", *stages], body)


def mean_distance(rows: Iterable[Row], name: str) -> str:
    """The mean of a distance over seeds; a dash where some seed has none."""
    values = [row.get(name) for row in rows]
    return EMPTY if None in values else f"{np.mean(np.array(values, float)):.1f}"


def published_in(setting: Setting) -> Mapping[str, str]:
    """Method → published figure of a setting, where there is one."""
    plain = setting == Setting(*setting[:7]) and setting.regime == "pretrained"
    return PUBLISHED.get(setting[:6], {}) if plain else {}


def pretraining(runs: Runs) -> str:
    """The accuracy from which all methods start."""
    found = last_rows(rows_of(runs), PRETRAINING).get(Stage(0, "pretrain"))
    return f"Pretraining: {shown(values_of(found))}. " if found else ""


def some_seeds(runs: Runs, method: str) -> str:
    """Says that a method did not finish for all seeds."""
    done = sum(method in outcome.all_tests for outcome in runs.values())
    return "" if done == len(runs) else f" ({done} of {len(runs)} seeds)"


def title(setting: Setting) -> str:
    """What was compared."""
    starts = {"pretrained": "pretrained apart", "common": "from one common initialisation"}
    partition = setting.partition if setting.alpha is None else f"Dirichlet {setting.alpha:g}"
    norms = {None: "", "group": " with GroupNorm", "layer": " with LayerNorm"}
    every = f", gossip every {setting.gossip_every} steps" * (setting.gossip_every > 1)
    return (
        f"{setting.dataset}, {partition}, {setting.topology}, {setting.agents} agents, "
        f"{setting.model} × {setting.width:g}{norms[setting.norm]}, {starts[setting.regime]}{every}"
    )


def verdict(runs: Runs) -> str:
    """Which methods are ahead of agents alone and which behind, as far as intervals say so."""
    if ALONE not in methods_in(runs):
        return ""
    lines = [line(runs, method) for method in methods_in(runs) if method != ALONE]
    said = []
    for point, leads in (
        ("After the last training", {x.method: x.over_trained for x in lines}),
        ("At the end", {x.method: x.over_end for x in lines}),
    ):
        found = {m: x for m, x in leads.items() if x is not None}
        clear = {m: x for m, x in found.items() if sure(x)}  # Of one seed nothing is.
        before, behind = (
            ", ".join(METHODS[m].label for m, x in clear.items() if (x.mean > 0) == positive)
            for positive in (True, False)
        )
        said.append(
            f"{point} ahead of agents alone: {before or 'none'}; behind them: {behind or 'none'}"
            f"; the other {len(found) - len(clear)} of {len(found)} cannot be told apart from them."
        )
    return " ".join(said)


def strongest(settings: Mapping[Setting, Runs]) -> Table:
    """The strongest decentralized method of each setting, and by how much it leads agents alone.

    Methods with a server, or all data, are left out, and those that did not finish for all seeds.
    """
    body = []
    for setting, runs in settings.items():
        finished = [m for m in methods_in(runs) if not some_seeds(runs, m)]
        lines = [line(runs, m) for m in finished if m not in REFERENCES]
        row = [title(setting)]
        for values, over in (("trained", "over_trained"), ("end", "over_end")):
            measured = [x for x in lines if len(getattr(x, values))]
            best = max(measured, key=lambda x: getattr(x, values).mean(), default=None)
            row.append(EMPTY if best is None else METHODS[best.method].label)
            row.append(EMPTY if best is None else ahead(getattr(best, over)))
        row.append(next((ahead(x.over_end) for x in lines if x.method == "dimat"), EMPTY))
        body.append(row)
    columns = ["setting", "after the last training", "over Alone", "at the end", "over Alone"]
    return Table("Which method is strongest", [*columns, "DIMAT over Alone, at the end"], body)


def picture(setting: Setting, runs: Runs) -> Figure:
    """Accuracy by round, by epoch and by megabytes that an agent has sent."""
    rows, methods = rows_of(runs), methods_in(runs)
    figure = Figure(figsize=(14, 5), layout="constrained", dpi=110)
    panels = figure.subplots(1, 3, sharey=True)
    for index, method in enumerate(methods):
        found, stages = curve(rows, method), last_rows(rows, method).values()
        epochs = [next(iter(by_seed.values()))["epoch"] for by_seed in stages]
        for axes, x in zip(panels, (found.rounds, epochs, found.megabytes), strict=True):
            color, style = COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]
            axes.plot(
                x, found.mean, label=METHODS[method].label, color=color, linestyle=style, marker="."
            )
    for axes, label in zip(panels, ("round", "epoch", "MB sent by an agent"), strict=True):
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].set_xscale("symlog", linthresh=0.1)
    panels[0].set_ylabel("test accuracy in %, mean over agents and seeds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(title(setting), fontweight="bold")
    return figure


def write_report(
    folder: pathlib.Path,
    preset: str,
    reduced: str,
    outcomes: Sequence[tuple[Cell, Outcome]],
    number: int,
    at_edge: Sequence[str] = (),
) -> None:
    """Writes ``paper.md``, ``paper.csv`` and a picture for every setting.

    Args:
      folder: where to.
      preset: as on the command line.
      reduced: what is smaller than in the paper.
      outcomes: of the finished cells, at least one.
      number: of all cells.
      at_edge: which tuned learning rates lie at the edge of their grid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = by_setting(outcomes)
    parts = [introduction(preset, reduced, outcomes, number, at_edge)]
    parts.append(f"## Which method is strongest\n\n{to_markdown(strongest(settings))}")
    for setting, runs in settings.items():
        name = f"paper-{setting.name}.png"
        picture(setting, runs).savefig(folder / name)
        table = table_of(setting, runs)
        seeds = f"Seeds: {len(runs)}. {pretraining(runs)}{verdict(runs)}".strip()
        parts.append(f"## {table.title}\n\n{seeds}\n\n{to_markdown(table)}\n\n![curves]({name})")
        more = [distances_table(runs)]
        more += [shards_table(runs)] * (setting.partition == "by_class")
        parts += [f"{table.title}:\n\n{to_markdown(table)}" for table in more]
    (folder / "paper.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    write_csv(folder / "paper.csv", settings)


COLUMNS = """\
All methods of a table see the same data, initial weights and order of batches. Its columns:

- **after merge 1**, **after round 1**: test accuracy in %, mean ± standard deviation over all
  agents of all seeds, right after the first merge, and after the training that follows it.
- **after the last training**: after {rounds} rounds of {epochs} epoch(s). From a common
  initialisation there are more, as many as pretraining would have had epochs. Merging methods have
  trained apart since their last merge; the others have just exchanged something.
- **at the end**: merging methods after one merge more, the others as they are.
- **mean model**: of the plain mean of all agents' parameters at the end, with statistics of
  everyone's examples; on the test images used along the way.
- **over Alone**: ahead of agents that never communicate, in points, paired by seed, with a 95%
  interval of Student's t (of one seed the difference alone); in bold where the interval is without
  a zero.
- **MB sent**: by an agent, in the mean.
- **published**: the figure of arXiv 2404.08079, where it has the same setting.
"""


def introduction(
    preset: str,
    reduced: str,
    outcomes: Sequence[tuple[Cell, Outcome]],
    number: int,
    at_edge: Sequence[str],
) -> str:
    """What the tables show, of which run they are, and what was reduced."""
    outcome = outcomes[0][1]
    minutes = sum(found.seconds for _, found in outcomes) / 60
    rounds, epochs = outcome.config["rounds"], outcome.config["epochs_per_round"]
    less = f" Other than in the paper: {reduced}." if reduced else ""
    beyond = "Best at the edge of its grid, so that a rate beyond may be better"
    edges = f" {beyond}: {', '.join(at_edge)}." if at_edge else ""
    return (
        f"# The paper's comparison\n\n`python -m experiments.paper --preset {preset}`: "
        f"{len(outcomes)} of {number} cells, {minutes:.0f} minutes in all. "
        f"{provenance([found for _, found in outcomes])}{less}\n\n"
        f"{COLUMNS.format(rounds=rounds, epochs=epochs)}\n"
        "BatchNorm statistics are recomputed for every method but WA (published). Learning rates: "
        f"tuning.md.{edges} A setting of one seed is a single run: a difference of a point or two "
        "says nothing there."
    )


def write_csv(path: pathlib.Path, settings: Mapping[Setting, Runs]) -> None:
    """A line for every setting, method and point of time; shares, not per cent."""
    head = [*Setting._fields, "method", "label", "after", "mean", "std", "seeds", "bytes_sent"]
    head.append("published")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for setting, runs in settings.items():
            for method in methods_in(runs):
                seeds = sum(method in outcome.all_tests for outcome in runs.values())
                figure = published_in(setting).get(method, "")
                for after, values, sent in points(runs, method):
                    cells = [
                        f"{values.mean():.4f}",
                        f"{spread(values) or 0:.4f}",
                        seeds,
                        f"{sent:.0f}",
                    ]
                    cells.append(figure if after == END else "")
                    writer.writerow([*setting, method, METHODS[method].label, after, *cells])


def points(runs: Runs, method: str) -> list[tuple[str, Float[np.ndarray, " agents"], float]]:
    """A method's accuracies and bytes at each stage, after the last training, and at the end."""
    done = {seed: outcome for seed, outcome in runs.items() if method in outcome.all_tests}
    stages = last_rows(rows_of(done), method).items()
    found = [
        (str(stage), values_of(rows), float(np.mean([r["bytes_sent"] for r in rows.values()])))
        for stage, rows in stages
    ]
    trained, final = last_trained(rows_of(done), method), line(runs, method)
    if trained:
        bytes_sent = float(np.mean([row["bytes_sent"] for row in trained.values()]))
        found.append(("last training", final.trained, bytes_sent))
    return [*found, (END, final.end, final.bytes_sent)]
