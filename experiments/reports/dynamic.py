"""The page of `experiments.dynamic`: its tables, how long recovery takes, its picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dimat_jax.registry import METHODS
from dimat_jax.report.figures import COLORS, GREY
from dimat_jax.report.leads import CONFIDENCE, Lead, lead
from dimat_jax.report.tables import EMPTY, Table, megabytes, to_markdown
from experiments import studies
from experiments.dynamic import ALONE, GRAPHS, MOVING, NOTHING, SCENARIOS, STATIC
from experiments.reports.values import ahead

if TYPE_CHECKING:
    from experiments.dynamic import Graph, Scenario, Study

Row = Mapping[str, Any]
Rounds = Mapping[int, float]
MARGIN = 0.01
"""By how much accuracy may lie below a level and still count as back at it."""
PICTURED = tuple(s for s in SCENARIOS if s.changes_agents or s.fail == 1)


def report(study: "Study", data: str, rows: Sequence[Row]) -> str:
    """What stands below the picture.

    Args:
      study: what was run.
      data: the data set's display name.
      rows: of all cells.
    """
    base, first, last = study.base, study.first, study.last
    return "\n\n".join(
        [
            f"{data}; {base.agents} agents of {base.examples_per_agent} images, {base.partition}; "
            f"{base.model} × {base.width:g}, norm: {base.norm}; {base.pretrain_epochs} epochs "
            f"apart, then {base.rounds} rounds of a merge and an epoch, at {base.round_rate:g} of "
            f"the learning rate; {study.seeds} seeds. Accuracies in %, means over the agents who "
            "are there and over seeds; differences in points, paired by seed, with a "
            f"{CONFIDENCE:.0%} interval. {studies.provenance(rows)}",
            "## Events",
            f"On the graph “{STATIC}”. {MOVING} agents join or leave before round {first}, or are "
            f"away in rounds {first} to {last} and come back with the networks that they had; "
            "edges fail in the same rounds; messages are lost or stale (what their sender was one "
            "merge before) throughout. Lowest: after training, from the event on. Consensus "
            "distance after training, before the event and its largest value since, and at the "
            "end. Back: rounds from the event on until accuracy after training stays at what it "
            "was before it, or at that of the same run without any event in the same round, "
            f"{100 * MARGIN:g} point less allowed; of each seed; 0: it never fell below.",
            to_markdown(table_of_events(study, rows)),
            "## Newcomers",
            f"Accuracy of the {MOVING} who join, after their first merges and trainings, and at "
            "the end; of the others after the first merge with them, and how far that is from the "
            "same agents' in the run without events.",
            to_markdown(table_of_newcomers(study, rows)),
            "## Graphs that change",
            "Without events. Neighbours: those that an agent hears from in a round. Over static: "
            "over the graph named, which stays as it is, at the end; consensus distance after the "
            "last merge and after the last training.",
            to_markdown(table_of_graphs(study, rows)),
        ]
    )


# Values by round ----------------------------------------------------------------------------------


def by_round(
    rows: Sequence[Row],
    graph: str,
    scenario: str,
    method: str,
    name: str = "accuracy",
    phase: str = "train",
) -> dict[int, dict[int, float]]:
    """Seed → round → a value, after merges or after training, where there is one."""
    wanted = {"graph": graph, "scenario": scenario, "method": method, "phase": phase}
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()) and row[name] is not None:
            found.setdefault(row["seed"], {})[row["round"]] = row[name]
    return found


def at(values: Mapping[int, Rounds], round: int) -> dict[int, float]:
    """Seed → the value of a round."""
    return {seed: rounds[round] for seed, rounds in values.items() if round in rounds}


def shown(values: Mapping[int, float], scale: float = 100, digits: int = 1) -> str:
    """Mean over seeds; a dash for none."""
    return f"{scale * np.mean(list(values.values())):.{digits}f}" if values else EMPTY


def recovery(values: Rounds, first: int, level: Rounds) -> int | None:
    """How many rounds after an event values are back at a level, to stay there.

    Args:
      values: by round.
      first: the round of the event.
      level: by round; values may be `MARGIN` lower.

    Returns:
      0 where they never fell below; None where they lie below it in the last round.
    """
    rounds = [round for round in values if round >= first]
    below = [round for round in rounds if values[round] < level[round] - MARGIN]
    if not below:
        return 0
    return None if below[-1] == max(rounds) else below[-1] + 1 - first


def recoveries(study: "Study", values: Mapping[int, Rounds], levels: Mapping[int, Rounds]) -> str:
    """`recovery` of each seed that has a level, in a row."""
    most = study.base.rounds - study.first
    found = [
        recovery(rounds, study.first, levels[seed])
        for seed, rounds in sorted(values.items())
        if seed in levels
    ]
    return ", ".join(f"> {most}" if r is None else f"{r}" for r in found) or EMPTY


def label(method: str) -> str:
    """What a method is called."""
    return METHODS[method].label


# Events -------------------------------------------------------------------------------------------


def table_of_events(study: "Study", rows: Sequence[Row]) -> Table:
    """A line for each scenario and method."""
    columns = ["event", "method", "before", "after its merge", "after its training", "lowest"]
    columns += ["the end", "the end over no event", "distance before", "largest", "at the end"]
    columns += ["back at its own", "back at no event's"]
    body = [
        line_of_event(study, rows, scenario, method)
        for scenario in SCENARIOS
        for method in ("dimat", "wa", ALONE)
        if by_round(rows, STATIC, scenario.label, method)
    ]
    return Table("", columns, body)


def line_of_event(
    study: "Study", rows: Sequence[Row], scenario: "Scenario", method: str
) -> list[str]:
    """What the table says of a method in a scenario."""
    first, end, before = study.first, study.base.rounds, study.first - 1
    trained = by_round(rows, STATIC, scenario.label, method)
    merged = by_round(rows, STATIC, scenario.label, method, phase="merge")
    distances = by_round(rows, STATIC, scenario.label, method, "distance")
    without = by_round(rows, STATIC, NOTHING.label, method)
    lowest = {
        seed: min(v for r, v in rounds.items() if r >= first) for seed, rounds in trained.items()
    }
    largest = {
        seed: max(v for r, v in rounds.items() if r >= first) for seed, rounds in distances.items()
    }
    own = {seed: dict.fromkeys(rounds, rounds[before]) for seed, rounds in trained.items()}
    recovered = EMPTY, EMPTY
    if scenario.has_event:
        recovered = recoveries(study, trained, own), recoveries(study, trained, without)
    over = lead(at(trained, end), at(without, end)) if scenario != NOTHING else None
    accuracies = (
        at(trained, before),
        at(merged, first),
        at(trained, first),
        lowest,
        at(trained, end),
    )
    far = at(distances, before), largest, at(distances, end)
    return [
        scenario.label,
        label(method),
        *map(shown, accuracies),
        ahead(over),
        *(shown(values, 1, 2) for values in far),
        *recovered,
    ]


# Newcomers ----------------------------------------------------------------------------------------


def table_of_newcomers(study: "Study", rows: Sequence[Row]) -> Table:
    """A line for each way to join and each method."""
    first, end = study.first, study.base.rounds
    columns = ["newcomers", "method", "after merge 1", "training 1", "merge 2", "training 2"]
    columns += ["the end", "training 1 over WA", "the end over WA", "the end over Alone"]
    columns += ["others after merge 1", "over no event"]
    body = []
    for scenario in (s for s in SCENARIOS if s.joins):
        for method in ("dimat", "wa", ALONE):
            theirs = {
                other: by_round(rows, STATIC, scenario.label, other, "moving")
                for other in (method, "wa", ALONE)
            }
            trained = theirs[method]
            if not trained:
                continue
            merged = by_round(rows, STATIC, scenario.label, method, "moving", "merge")
            points = at(merged, first), at(trained, first)
            points += at(merged, first + 1), at(trained, first + 1), at(trained, end)
            leads: list[Lead | None] = [
                lead(at(trained, round), at(theirs[other], round)) if method != other else None
                for round, other in ((first, "wa"), (end, "wa"), (end, ALONE))
            ]
            others, usual = (
                at(by_round(rows, STATIC, name, method, "others", "merge"), first)
                for name in (scenario.label, NOTHING.label)
            )
            line = [scenario.label, label(method), *map(shown, points), *map(ahead, leads)]
            body.append([*line, shown(others), ahead(lead(others, usual))])
    return Table("", columns, body)


# Graphs -------------------------------------------------------------------------------------------


def table_of_graphs(study: "Study", rows: Sequence[Row]) -> Table:
    """A line for each graph and method."""
    columns = ["graph", "method", "neighbours", "after the last merge", "the end", "over static"]
    columns += ["static", "over Alone", "distance after the merge", "after training", "MB"]
    body = [
        line_of_graph(study, rows, graph, method)
        for method in ("dimat", "wa")
        for graph in GRAPHS.values()
        if by_round(rows, graph.label, NOTHING.label, method)
    ]
    return Table("", columns, body)


def line_of_graph(study: "Study", rows: Sequence[Row], graph: "Graph", method: str) -> list[str]:
    """What the table says of a method on a graph."""
    end = study.base.rounds

    def last(name: str, phase: str = "train", graph: str = graph.label) -> dict[int, float]:
        return at(by_round(rows, graph, NOTHING.label, method, name, phase), end)

    trained, alone = last("accuracy"), at(by_round(rows, STATIC, NOTHING.label, ALONE), end)
    over = (
        EMPTY
        if graph.static is None
        else ahead(lead(trained, last("accuracy", graph=graph.static)))
    )
    distances = last("distance", "merge"), last("distance")
    return [
        graph.label,
        label(method),
        shown(last("neighbours"), 1),
        shown(last("accuracy", "merge")),
        shown(trained),
        over,
        graph.static or EMPTY,
        ahead(lead(trained, alone)),
        *(shown(values, 1, 2) for values in distances),
        megabytes(float(np.mean(list(last("bytes_sent").values())))),
    ]


# The picture --------------------------------------------------------------------------------------


def picture(study: "Study", rows: Sequence[Row]) -> Figure:
    """Accuracy and consensus distance through the events, beside the runs without any."""
    figure = Figure(figsize=(3 * len(PICTURED), 5.6), layout="constrained", dpi=120)
    grid = figure.subplots(2, len(PICTURED), sharex=True, sharey="row", squeeze=False)
    for column, scenario in zip(grid.T, PICTURED, strict=True):
        column[0].set_title(scenario.label, fontsize="medium")
        for axes, name, scale in zip(column, ("accuracy", "distance"), (100, 1), strict=True):
            for number, method in enumerate(("dimat", "wa", ALONE)):
                color = GREY if method == ALONE else COLORS[number]
                for happens, style in ((scenario, "-"), (NOTHING, ":")):
                    x, y = curve(rows, happens.label, method, name)
                    name_of_line = label(method) + ("" if happens == scenario else ", no event")
                    axes.plot(x, scale * y, style, color=color, label=name_of_line, linewidth=1.3)
            until = study.last if scenario.away or scenario.fail else study.first
            axes.axvspan(study.first - 1, until, color="black", alpha=0.07, linewidth=0)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        column[1].set_xlabel("round")
        column[1].xaxis.get_major_locator().set_params(integer=True)
        column[1].set_yscale("log")
    for axes, name in zip(grid[:, 0], ("test accuracy, %", "consensus distance"), strict=True):
        axes.set_ylabel(name)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def curve(
    rows: Sequence[Row], scenario: str, method: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds and means over seeds; a merge stands half a round before the training after it."""
    found = {
        round - 0.5 * (phase == "merge"): values
        for phase in ("merge", "train")
        for round, values in rounds_of(by_round(rows, STATIC, scenario, method, name, phase))
    }
    x = np.array(sorted(found))
    return x, np.array([np.mean(found[round]) for round in x])


def rounds_of(values: Mapping[int, Rounds]) -> list[tuple[int, list[float]]]:
    """Each round with the values of all seeds that have it."""
    rounds = sorted({round for of_seed in values.values() for round in of_seed})
    return [(round, list(at(values, round).values())) for round in rounds]
