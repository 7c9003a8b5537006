"""The page of `experiments.when_to_merge`: what was run, and its three parts."""

from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from dimat_jax.report.leads import CONFIDENCE
from dimat_jax.report.tables import to_markdown
from experiments import studies
from experiments.reports.when_to_merge_budget import (
    Row,
    budget_table,
    draw_budget,
    in_words,
    of_setting,
    verdict,
)
from experiments.reports.when_to_merge_crossing import (
    crossing_table,
    draw_crossing,
    reasons_table,
    stages_table,
)
from experiments.reports.when_to_merge_map import (
    accuracies_table,
    draw_map,
    gains_table,
    worth_table,
)

if TYPE_CHECKING:
    from experiments.when_to_merge import Study


class Found(NamedTuple):
    """What was measured.

    Attributes:
      study: what was run.
      data: the data set's display name.
      spent: a row for each way to spend messages, of the budget and of the map.
      crossed: a row for each measured round of the crossing.
    """

    study: "Study"
    data: str
    spent: list[Row]
    crossed: list[Row]


def report(found: Found) -> str:
    """What stands below the picture."""
    rows = [*found.spent, *found.crossed]
    sections = [what_was_run(found), studies.provenance(rows)]
    return "\n\n".join([*sections, *about_budget(found), *about_crossing(found), *about_map(found)])


def what_was_run(found: Found) -> str:
    """The runs in a paragraph, and what was reduced in them."""
    study = found.study
    base, long = study.base, study.crossing
    epochs = " or ".join(map(str, study.pretraining))
    norm = f", {base.norm} normalisation" if base.norm else ""
    return (
        f"{found.data}; {base.agents} agents of {base.examples_per_agent} images each, "
        f"{base.model} × {base.width:g}{norm}, Dirichlet with α = {base.alpha:g}; units compared "
        f"on {base.matching_images} and statistics recomputed on {base.statistics_images} of each "
        f"agent's own images; accuracies in % on {study.tests:,} test images. Budget and map: "
        f"{base.pretrain_epochs} epochs apart, {base.rounds} rounds of an epoch, one average of "
        f"everyone (augmentation: {base.augmentation}); {study.seeds} seeds, of the map "
        f"{study.map_seeds}. Crossing: {epochs} epochs apart, {long.rounds} rounds of a merge "
        f"({long.topology} graph) and an epoch, IID, from different initial weights, measured "
        f"every {long.evaluate_every} rounds (augmentation: {long.augmentation}); {study.seeds} "
        "seeds. All methods of a seed start from the same pretrained agents. Differences are "
        f"paired by seed, with {CONFIDENCE:.0%} intervals of Student's t, in bold where 0 lies "
        "outside. Reduced for time: "
        f"{'images at fewer pixels, ' if study.shrink > 1 else ''}a small network, few agents, few "
        "images and test images; and no parameters are tuned, for any method."
    )


def about_budget(found: Found) -> list[str]:
    """The sections of the budget."""
    budget = found.study.budget
    texts = [
        "## A budget of messages",
        f"On the exponential graph every agent merges in one of {budget.every} rounds: in the "
        "first ones (early), in every so many (evenly), or in the last ones (late); gossip with "
        "p = 1, a random peer in every round, sends about as much. Aligned: all bring their units "
        "into the order of agent 0's before the first exchange (gossip: before the first round), "
        "and again before the final average; each time its network is handed on to everyone, and "
        "counted. Agents: their mean accuracy after the last training, before the final average; "
        "distance from consensus then, and modulo permutation, with everyone's units in the "
        "order of agent 0's by their activations (which need not make it shorter). Merged model: "
        "the average of everyone, aligned or plain; not aligned again: what it were as aligned "
        "before. Networks: that an agent sends, the final average included.",
        " ".join(verdict(setting, of_setting(found.spent, setting)) for setting in settings(found)),
    ]
    for setting in settings(found):
        rows = of_setting(found.spent, setting)
        texts += [f"### {in_words(setting)}", to_markdown(budget_table(found.study, rows))]
    return texts


def settings(found: Found) -> tuple:
    """Those of the budget."""
    return found.study.settings


def about_crossing(found: Found) -> list[str]:
    """The sections of the crossing."""
    return [
        "## Many rounds: when plain averaging overtakes",
        "From which measured round on plain averaging is at least level with alignment (all align "
        "once, to agent 0's network, in the first merge), to the end: by the mean over seeds, for "
        "each seed, and the first measured round in which it is surely ahead.",
        to_markdown(crossing_table(found.crossed)),
        "Before a merge: the agents' accuracy, their distance from consensus, the same modulo "
        "permutation (with everyone's units in the order of agent 0's), the length of their "
        "parameters, their training loss in the last epoch, and the share of test images on which "
        "two agents disagree; then their accuracy after it, and that of the mean of all networks "
        "after the round.",
        to_markdown(stages_table(found.crossed)),
        "What goes with it: Spearman's rank correlation, over rounds, pretraining and seeds, of "
        "plain averaging's lead after a merge with how much more of each plain averaging has "
        f"before it; {CONFIDENCE:.0%} intervals by drawing runs anew, in bold where 0 lies "
        "outside.",
        to_markdown(reasons_table(found.crossed)),
    ]


def about_map(found: Found) -> list[str]:
    """The sections of the map."""
    texts = [
        "## The map: gossip and width",
        "Of the merged model after the final average, by the probability of gossip and the width "
        "of the network. First aligned − plain at the same probability, in points; then, for what "
        "alignment costs, aligned over the best plain way of the row that sends no more bytes than "
        "it; then the accuracies, plain / aligned, with the networks that an agent sends.",
    ]
    for setting in found.study.mapped:
        rows = of_setting(found.spent, setting, any_width=True)
        for table in (gains_table, worth_table, accuracies_table):
            texts.append(to_markdown(table(found.study, rows)))
        texts.insert(-3, f"### {in_words(setting)}")
    return texts


def picture(found: Found) -> Figure:
    """All three parts, one below the other."""
    study = found.study
    figure = Figure(figsize=(12, 17), layout="constrained", dpi=110)
    parts = figure.subfigures(3, 1, squeeze=False, height_ratios=[1, 2.3, 1.1])[:, 0]
    draw_budget(parts[0], study, found.spent)
    draw_crossing(parts[1], found.crossed)
    draw_map(parts[2], study, found.spent)
    return figure
