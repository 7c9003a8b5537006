"""What the studies of merging share: their command lines, cells measured once, their pages.

A study measures cells, each a file that is written when the cell is whole: what lies in the folder
is not measured again, so that a study that was stopped goes on where it was. Its page has the
answer, by hand, above `MARK`, and what was measured below it.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dimat_jax.registry import choose
from experiments import common, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dimat_jax.metrics import Row
    from dimat_jax.simulation.plan import Event
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState

MARK = "<!-- Above this line by hand; what is below is written by the command. -->"

Rows = list[dict[str, Any]]

Study = TypeVar("Study")
"""What a preset says: the cells, their seeds, the images that they are measured on."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    preset: Literal["cpu", "by_class", "gpu", "smoke"] = "cpu"
    """cpu: a quarter of an hour on two cores. by_class, gpu: as long again on other data, and on
    all images in wider networks, of the studies that have them. smoke: a minute, to see that it
    works."""
    out: pathlib.Path | None = None
    """Folder of what is measured, a file a cell, none of which is measured again; None:
    runs/NAME-PRESET."""
    page: pathlib.Path | None = None
    """Folder of the page (NAME.md; of another preset than cpu NAME_PRESET.md) and its picture;
    None: that of the cells. What stands on the page above the mark stays."""
    data_dir: pathlib.Path | None = None
    """Where data sets and archives lie; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def main(
    name: str,
    description: str | None,
    presets: Mapping[str, Study],
    measure: Callable[[Study, Options, pathlib.Path], tuple[str, "Figure"]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a study, and writes its page.

    Args:
      name: of the command.
      description: what its help says.
      presets: what can be studied, by name.
      measure: ``(the preset's study, options, folder of cells) -> (text, picture)``.
      arguments: of the command line; None: the process's.

    Returns:
      The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def act() -> None:
        options = common.command_line(Options, name, description or "", given)
        study = presets[choose("preset", options.preset, presets)]
        folder = options.out or pathlib.Path("runs") / f"{name}-{options.preset}"
        pages = options.page or folder
        grid.make_folders(folder, pages)
        text, picture = measure(study, options, folder)
        page = name if options.preset == "cpu" else f"{name}_{options.preset}"
        picture.savefig(pages / f"{page}.png", metadata={"Software": None})
        command = f"python -m experiments.{name} --preset {options.preset}"
        written = f"![{page}]({page}.png)\n\n`{command}`. {text}\n"
        print(f"Written to {write_page(pages / f'{page}.md', written)}")

    return common.exit_code(act)


def write_page(path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes what was measured; what a page has above `MARK` stays as it is."""
    before = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else ""
    path.write_text(f"{before}{MARK}\n\n{text}", encoding="utf-8")
    return path


def cell(
    folder: pathlib.Path, name: str, described: Mapping[str, Any], measure: Callable[[], Rows]
) -> Rows:
    """The rows of a cell: those of its file, if it is of this description, else measured now.

    Args:
      folder: of the cells.
      name: of this one.
      described: all that decides its numbers.
      measure: measures it.

    Returns:
      The rows, each with the commit, the versions and the data set that they were measured with.
    """
    from dimat_jax.report.folder import write_json
    from dimat_jax.report.summary import commit, versions

    file = folder / f"{name}.json"
    plain = json.loads(json.dumps(described, default=str))
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["described"] == plain:
            return stored["rows"]
    start, whence = time.monotonic(), {"commit": commit(), "versions": versions()}
    rows = [{**row, **whence} for row in measure()]
    seconds = time.monotonic() - start
    print(f"{name}: {seconds:.0f} s", flush=True)
    partial = folder / f"{name}.partial"
    write_json(partial, {"described": plain, "seconds": seconds, "rows": rows})
    partial.replace(file)
    return rows


def provenance(rows: Iterable[Mapping[str, Any]]) -> str:
    """With which code and libraries rows were measured, in a sentence."""
    found = list(rows)
    commits = sorted({str(row["commit"]) for row in found})
    libraries = sorted({f"{k} {v}" for row in found for k, v in row["versions"].items() if v})
    return f"Commit {', '.join(commits)}; {', '.join(libraries)}."


def pretrain(session: "Session", seed: int | None = None) -> "RunState":
    """The agents of a seed, by default the run's first, at the end of their pretraining."""
    from dimat_jax.simulation.plan import Action

    state = session.start(seed)
    while (event := session.next_event(state)) and event.action is not Action.BEGIN:
        state, _ = session.advance(state)
    return state


Watch = Callable[["Event", "RunState", "Row | None"], None]
"""``(event, state after it, row that it gave)``."""


def run_methods(
    session: "Session", pretrained: "RunState", methods: Iterable[str], watch: Watch
) -> list[str]:
    """Runs methods from pretrained agents of another session or of this one.

    Args:
      session: among whose seeds is the agents'.
      pretrained: stays as it is.
      methods: those that are run, of the session's.
      watch: sees every event.

    Returns:
      The methods whose loss did not stay finite.
    """
    from dimat_jax.simulation.measure import Diverged

    wanted, diverged = set(methods), []
    state = session.take_over(pretrained)
    while (event := session.next_event(state)) and event.seed == state.position.seed:
        if event.method not in wanted:
            state = session.skip_method(state)
            continue
        try:
            state, row = session.advance(state)
        except Diverged:
            diverged.append(event.method)
            state = session.skip_method(state)
            continue
        watch(event, state, row)
    return diverged
