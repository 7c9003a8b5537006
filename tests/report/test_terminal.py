"""Text comes out as it is, and in any encoding."""

import io
import os
import subprocess
import sys

from dimat_jax.report.terminal import take_any_text, terminal


def test_brackets_and_colons_are_no_markup(monkeypatch):
    monkeypatch.setattr(sys, "stdout", said := io.StringIO())
    for text in ("runs/a[lr=0.1]", "runs/x[/red]", ":smile:", "[bold]1[/bold]"):
        terminal().print(text)
        assert said.getvalue().splitlines()[-1] == text


def test_what_an_encoding_lacks_is_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    take_any_text()
    terminal().print("52.3 ± 0.4 %")
    sys.stdout.flush()
    assert raw.getvalue() == b"52.3 ? 0.4 %\n"


def test_a_stream_that_cannot_be_changed_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    take_any_text()


def test_a_reader_that_has_gone_ends_a_command_without_a_word():
    command = [sys.executable, "-m", "experiments.cifar", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
