"""What the commands share: the command line from `Config`, the run, its folder and its report.

Heavy modules are imported inside the functions that need them, so that ``--help`` and a wrong
option answer at once.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from dimat_jax import registry
from dimat_jax.config import LEARNING_RATES, PRESETS, Config
from dimat_jax.registry import choose
from experiments.processes import about_lost, among_several, is_lost, join, leave, speaks
from experiments.stopping import stopping

if TYPE_CHECKING:
    from rich.console import Console

    from dimat_jax.simulation.result import Result
    from dimat_jax.simulation.setup import Setup

BAD_INPUT, DIVERGED, LOST = 2, 3, 4
INTERRUPTED, BROKEN_PIPE = 130, 141
"""As shells have it: 128 and the number of the signal."""
NUMBERS = {int: "a whole number", float: "a number"}
NAMED: dict[str, Iterable[str]] = {
    "topology": registry.TOPOLOGIES,
    "dataset": registry.DATASETS,
    "partition": registry.PARTITIONS,
    "augmentation": registry.AUGMENTATIONS,
    "model": registry.MODELS,
    "optimizer": LEARNING_RATES,
    "methods": registry.METHODS,
    "method_learning_rate": registry.METHODS,
}
"""Option → the names that it takes."""
KINDS = {"dataset": "data set", "methods": "method", "method_learning_rate": "method"}
"""Option → what it names, where that is called otherwise."""
Options = TypeVar("Options")


def run(name: str, description: str, arguments: Sequence[str], preset: str = Config.preset) -> int:
    """Parses the command line of ``python -m experiments.NAME``, runs it and reports.

    Args:
      name: of the command.
      description: what its help says.
      arguments: of the command line.
      preset: where defaults come from if none is named.

    Returns:
      The exit code, see `exit_code`; 3 where a method diverged.
    """

    def go() -> int:
        config, more = parse_command(name, description, arguments, preset)
        if more.estimate is not None:
            return show_estimate(config, more.estimate)
        given = more.coordinator, more.num_processes, more.process_id
        if more.distributed or given != (None, None, None):
            join(config, *given)
        command = f"python -m experiments.{name} {shlex.join(arguments)}"
        from dimat_jax.simulation.measure import Diverged

        try:
            return DIVERGED if run_and_report(config, command).diverged else 0
        except Diverged as error:
            print(f"error: {error}", file=sys.stderr)
            return DIVERGED

    code = exit_code(go)
    return code if code in (0, DIVERGED) else leave(code)


def exit_code(action: Callable[[], object]) -> int:
    """Does what a command does.

    Returns:
      0, or the number that the action returns; 2, after one sentence, for bad input; 4 where
      another process of the run is gone; 130 or 143, after one as well, where it was interrupted;
      141 where nobody reads what it writes.
    """
    from dimat_jax.report.terminal import take_any_text

    take_any_text()
    try:
        try:
            done = action()
        finally:
            if sys.stdout is not None:  # It may be closed.
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has gone, as in `... | head`; what Python still has to write goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except RuntimeError as error:
        if not (among_several() and is_lost(error)):
            raise
        print(f"error: {about_lost(error)}", file=sys.stderr)
        return LOST
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "Interrupted.", file=sys.stderr)
        return getattr(interrupt, "code", INTERRUPTED)
    return done if isinstance(done, int) else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(Config):
    """A run, or only an estimate of it; alone, or as one of several processes."""

    estimate: Literal["h100", "a100", "v5e", "v4", "cpu"] | None = None
    """Runs nothing: says what the run needs of such a device, which need not be here, in bytes and
    at least in time."""
    distributed: bool = False
    """Whether this is one of several processes of the run, which find each other by themselves: on
    TPU pods, under Slurm or Open MPI. All are started with the same options, and a folder --out
    that all of them see."""
    coordinator: str | None = None
    """host:port of process 0, where the processes do not find each other by themselves."""
    num_processes: int | None = None
    """How many there are, with --coordinator."""
    process_id: int | None = None
    """Which of them this is, from 0, with --coordinator."""


def parse(
    name: str, description: str, arguments: Sequence[str], preset: str = Config.preset
) -> Config:
    """The configuration that the arguments ask for, on top of their preset."""
    return parse_command(name, description, arguments, preset)[0]


def parse_command(
    name: str, description: str, arguments: Sequence[str], preset: str
) -> tuple[Config, Command]:
    """The configuration that the arguments ask for, and all that they say."""
    named = given_values(Command, arguments).get("preset") or [preset]
    default = PRESETS[choose("preset", named[-1], PRESETS)]
    found = vars(command_line(Command, name, description, arguments, Command(**vars(default))))
    options = {field.name: found[field.name] for field in dataclasses.fields(Config)}
    return Config(**options), Command(**found)


def show_estimate(config: Config, device: str) -> int:
    """Shows what a run needs on a device; returns the exit code, 0 whether it fits or not."""
    from dimat_jax.estimate.estimate import estimate
    from dimat_jax.report.estimates import memory_table, time_table, verdict
    from dimat_jax.report.tables import show
    from dimat_jax.report.terminal import terminal

    console, found = terminal(), estimate(config, device)
    for table in (memory_table(found), time_table(found)):
        show(table, console)
        console.print()
    console.print(verdict(found), soft_wrap=True)
    return 0


def command_line(
    options: type[Options],
    name: str,
    description: str | None,
    arguments: Sequence[str],
    default: Options | None = None,
) -> Options:
    """The options that the arguments of ``python -m experiments.NAME`` ask for.

    Raises:
      ValueError: for a value that an option cannot have. What else is wrong tyro explains itself.
    """
    hints = get_type_hints(options)
    for option, values in given_values(options, arguments).items():
        check_values(option, hints[option], values)
    listed = with_names(options)
    found = tyro.cli(
        listed,
        prog=f"python -m experiments.{name}",
        description=(description or "").replace("`", ""),
        args=list(arguments),
        default=None if default is None else listed(**vars(default)),
    )
    return options(**vars(found))


def with_names(options: type[Options]) -> type[Options]:
    """The same options, whose help adds the names that those in `NAMED` take."""
    hints, fields = get_type_hints(options), []
    for field in dataclasses.fields(options):  # pyrefly: ignore
        if field.name in NAMED:
            hint = functools.partial(
                "(names: {}; default: {})".format, ", ".join(NAMED[field.name])
            )
            listed = Annotated[hints[field.name], tyro.conf.arg(help_behavior_hint=hint)]
            fields.append((field.name, listed, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(options.__name__, fields, bases=(options,), frozen=True)


def given_values(options: type, arguments: Sequence[str]) -> dict[str, list[str]]:
    """The values of every option that the arguments name, as they stand there at its last mention.

    Raises:
      ValueError: for an argument that stands before all options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for field in dataclasses.fields(options):
        dashed = field.name.replace("_", "-")
        parser.add_argument(f"--{dashed}", f"--{field.name}", dest=field.name, nargs="*")
    found, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("-"):
        raise ValueError(f"{rest[0]!r} belongs to no option: each begins with --.")
    return {name: values for name, values in vars(found).items() if values is not None}


def check_values(option: str, hint: Any, values: Sequence[str]) -> None:
    """Raises a `ValueError` for values that an option cannot have, or for too many.

    Args:
      option: its name.
      hint: its annotation.
      values: as they stand on the command line.
    """
    of_tuple = get_origin(hint) is tuple
    most = None if of_tuple else int(hint is not bool)
    if most is not None and len(values) > most:
        takes = "one value" if most else "no value"
        raise ValueError(f"{values[most]!r} belongs to no option: {option} takes {takes}.")
    if not values and hint is not bool:
        raise ValueError(f"{option} needs a value.")
    pairs = of_tuple and get_origin(get_args(hint)[0]) is tuple
    if pairs and len(values) % 2:
        raise ValueError(f"{option} takes pairs of a name and a number: {values[-1]!r} has none.")
    if not pairs:
        for value in values:
            check_value(option, hint, value)
        return
    name, number = get_args(get_args(hint)[0])
    for i, value in enumerate(values):
        check_value(option, number if i % 2 else name, value)


def check_value(option: str, hint: Any, value: str) -> None:
    """Raises a `ValueError` for none of an option's choices, or not its kind of number."""
    kinds = (hint, *get_args(hint))
    if value == "None" and type(None) in kinds:
        return
    if option in NAMED and str in kinds:
        choose(KINDS.get(option, option), value, NAMED[option])
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    numbers = [kind for kind in kinds if kind in NUMBERS]
    if value in words:
        return
    if words and not numbers:
        choose(option, value, words)
    for kind in numbers[-1:]:  # Of int | float the last takes both.
        try:
            kind(value)
        except ValueError as error:
            other = "".join(f" or {word}" for word in words)
            raise ValueError(f"{option} must be {NUMBERS[kind]}{other}, not {value!r}.") from error


def run_and_report(config: Config, command: str = "") -> "Result":
    """Runs a configuration, showing progress and in the end its tables.

    Args:
      config: the run; without a folder it gets a new one.
      command: the command line that asked for it, to which ``--out`` and ``--resume`` are added
        where it is said how an interrupted run goes on.

    Raises:
      ValueError: for bad input, with nothing lost or overwritten; if a method diverges.
      KeyboardInterrupt: if it is interrupted; says where. Of a run that has begun the tables of
        what there is are shown before it or a divergence is raised.
    """
    from dimat_jax.report.progress import show_progress
    from dimat_jax.report.terminal import terminal
    from experiments.banner import print_banner

    console, stopped = terminal(quiet=not speaks()), []
    own = config.out is None
    config = dataclasses.replace(config, out=config.out or default_folder(config))
    try:
        with show_progress(console) as shown, stopping(shown.on_note) as signals:
            shown.on_phase("importing JAX", 0.0)
            from dimat_jax.runs import simulate

            def on_start(setup: "Setup") -> None:
                shown.on_start(setup)
                print_banner(console, setup)
                signals.begin()

            def on_stop(result: "Result", reason: str) -> None:
                stopped.append((result, reason))

            observer = shown._replace(on_start=on_start, on_stop=on_stop, stop=signals.asked)
            result = simulate(config, observer=observer)
    except (KeyboardInterrupt, ValueError) as error:
        for result, reason in stopped:
            if not console.quiet:
                show_report(console, result)
            if isinstance(error, KeyboardInterrupt):
                error.args = (f"{reason} {how_to_go_on(config, command)}".strip(),)
        if own:
            folder = pathlib.Path(str(config.out))
            with contextlib.suppress(OSError):  # Unless something was written to it.
                folder.rmdir()
                folder.parent.rmdir()
        raise
    if not console.quiet:
        show_report(console, result)
    return result


def how_to_go_on(config: Config, command: str) -> str:
    """The command that goes on with an interrupted run; nothing where it has no checkpoints."""
    if not config.checkpoint_every:
        return ""
    given = shlex.split(command)
    out = [] if "--out" in given else ["--out", str(config.out)]
    resume = [] if "--resume" in given else ["--resume"]
    given = [word for word in given if word != "--overwrite"]
    return f"Go on with: {shlex.join([*given, *out, *resume])}"


def default_folder(config: Config) -> pathlib.Path:
    """A new folder under ``runs/``, named after the run and the time; no other run gets it."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.dataset}-{config.model}-{config.topology}-{config.agents}-{now}"
    for number in itertools.count(1):
        folder = pathlib.Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"{folder} cannot be made: {error.strerror}.") from error
    raise AssertionError("unreachable")


def show_report(console: "Console", result: "Result") -> None:
    """Shows what `dimat_jax.report.folder` has written: the tables, and who leads by how much."""
    from dimat_jax.metrics import measured
    from dimat_jax.report.folder import SUMMARY_FILE, divergences, out_of, tables_of
    from dimat_jax.report.summary import final_line, headline
    from dimat_jax.report.tables import show

    folder = out_of(result.setup)
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    for table in tables_of(result) if measured(result.history) else []:
        show(table, console)
        console.print()
    for line in divergences(result):
        console.print(line, soft_wrap=True, markup=False)
    for line in filter(None, (headline(summary), final_line(summary))):
        console.print(line, soft_wrap=True)
    console.print(f"Written to {folder}", soft_wrap=True)
