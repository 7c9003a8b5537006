import jax
import pytest

from experiments import processes
from experiments.cifar import main


@pytest.mark.parametrize(
    "given, missing",
    [
        ("--process-id 0", "coordinator and num_processes are missing"),
        ("--num-processes 2", "coordinator and process_id are missing"),
        ("--coordinator host:1 --process-id 0", "num_processes is missing"),
    ],
)
def test_options_of_several_processes_go_together(given, missing, tmp_path, capsys):
    assert main([*given.split(), "--agents", "4", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and missing in said and said.count("\n") == 1
    assert not jax.distributed.is_initialized()


def test_several_processes_need_a_folder(capsys):
    assert main(["--distributed"]) == 2
    assert "need out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, lost",
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (RuntimeError("the program's own"), False),
    ],
)
def test_a_process_is_gone_only_where_the_way_to_it_is(error, lost):
    assert processes.is_lost(error) is lost
