"""The documentation's code runs, and its tables are those of the records."""

import os
import pathlib
import re
import subprocess

import pytest

import dimat_jax as dj
from dimat_jax.algorithms import METHODS
from dimat_jax.report.methods import BEGIN, END, method_table
from dimat_jax.report.tables import to_markdown

METHODS_PAGE = (pathlib.Path(__file__).parents[1] / "docs/methods.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_that_of_the_records():
    found = METHODS_PAGE.split(BEGIN)[1].split(END)[0]
    assert found.strip() == to_markdown(method_table(METHODS)).strip()
    assert all(f"`{name}`" in found for name in METHODS)


def code_of(heading: str) -> str:
    """The Python of one section of the page."""
    section = METHODS_PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


@pytest.fixture
def run_section():
    """Runs the code of a section; the last rows of its methods."""

    def run(heading):
        before, names = set(METHODS), {}
        exec(code_of(heading), names)
        assert set(METHODS) == before, "nothing global changes"
        return {
            row["method"]: row for row in names["result"].history if row["method"] != "pretrain"
        }

    return run


def test_the_method_of_the_page_runs(run_section):
    ends = run_section("A method of one's own")
    assert set(ends) == {"dsgd", "damped"}
    # Halfway to the average disagrees more than the average.
    assert ends["damped"]["consensus_distance"] > 1.05 * ends["dsgd"]["consensus_distance"] > 0


@pytest.mark.slow
def test_the_combinations_of_the_page_run(run_section):
    ends = run_section("Combining")
    assert set(ends) == {"dsgd", "dsgd_dimat", "dsgd_final", "dsgd_aligned", "dimat_outer"}
    assert (
        ends["dsgd_final"]["phase"] == "merge" and ends["dsgd_final"]["consensus_distance"] < 1e-3
    )
    sent = {name: row["bytes_sent"] for name, row in ends.items()}
    # Of 4 agents: two merges with two neighbours each and a network along the tree of three edges;
    # or one merge with all three others.
    assert sent["dsgd_dimat"] - sent["dsgd"] == sent["dimat_outer"] > 0
    assert sent["dsgd_final"] - sent["dsgd"] == pytest.approx(3 / 4.75 * sent["dimat_outer"])


def test_a_run_goes_step_by_step_as_the_page_says():
    page = (pathlib.Path(__file__).parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
    names = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)), names)
    assert names["after"]["bytes_sent"] > names["before"]["bytes_sent"] == 0
    assert names["before"]["epoch"] == names["after"]["epoch"] == 3
    assert names["row"]["method"] == "dimat" and names["row"]["phase"] == "merge"
    rooms = {path.name.removesuffix(".py") for path in pathlib.Path(dj.__file__).parent.iterdir()}
    assert all(
        room in page for room in rooms - {"__init__", "__pycache__", "py.typed", "__init__.pyi"}
    )


TASKS_PAGE = (pathlib.Path(__file__).parents[1] / "docs/tasks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "metric"),
    [("Two inputs, a loss", "within_a_tenth"), ("An Equinox module", "accuracy")],
)
def test_the_tasks_of_the_page_run(heading, metric):
    section = TASKS_PAGE.split(f"## {heading}")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) < 30
    names = {}
    exec(code, names)
    first, last = names["result"].history[0], names["result"].history[-1]
    assert last[f"test_{metric}"] > first[f"test_{metric}"] > 0
    assert names["result"].setup.symmetries.groups


def readme_commands() -> list[str]:
    """The commands of the page's section "Two commands"."""
    page = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = page.split("## Two commands\n")[1].split("\n## ")[0]
    return re.findall(r"^    (\S.*)$", section, re.MULTILINE)


@pytest.mark.parametrize("compiler", [True, False])
def test_the_main_job_runs_with_and_without_a_compiler(compiler, tmp_path):
    command, _ = readme_commands()
    bin = tmp_path / ".venv" / "bin"
    bin.mkdir(parents=True)
    (tmp_path / "python3.11").write_text("#!/bin/sh\n")  # in the place of what makes the folder
    (bin / "python").write_text('#!/bin/sh\necho "python $*"\n')
    fails = "" if compiler else 'case "$*" in *cpu_kernels*) exit 1;; esac\n'
    (bin / "pip").write_text(f'#!/bin/sh\n{fails}echo "pip $*"\n')
    for path in (tmp_path / "python3.11", bin / "python", bin / "pip"):
        path.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    installed, kernels, job = done.stdout.splitlines()
    assert installed == "pip install --quiet -e ."
    expected = "pip install --quiet ./cpu_kernels" if compiler else "Without compiled kernels: "
    assert kernels.startswith(expected)
    assert job == "python -m experiments.cifar --agents 16"
