"""A Python of its own, for what is fixed once JAX has started."""

import os
import subprocess
import sys


def run_python(code: str, **environment: str) -> str:
    """What a fresh Python says, standard error included; JAX has one CPU device unless asked."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
