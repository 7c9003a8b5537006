"""A study run from end to end, as its command would, on something small."""

import json
import pathlib
from types import ModuleType
from typing import Any

from experiments import studies


def run(module: ModuleType, study: Any, folder: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Runs a module's command with a study of our own as its smallest preset.

    Returns:
      The rows of each cell by the cell's name, and the text of the page, which has a picture.
    """
    command = ["--preset", "smoke", "--out", str(folder / "cells"), "--page", str(folder)]
    code = studies.main(module.NAME, module.__doc__, {"smoke": study}, module.measure, command)
    assert code == 0
    assert (folder / f"{module.NAME}_smoke.png").stat().st_size > 10_000
    cells = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))["rows"]
        for file in (folder / "cells").iterdir()
    }
    return cells, (folder / f"{module.NAME}_smoke.md").read_text(encoding="utf-8")
