"""What a run needs before it starts, as tables."""

from dimat_jax.estimate.estimate import Estimate
from dimat_jax.report.tables import EMPTY, Table
from dimat_jax.simulation.memory import shown_bytes

HELD = {
    "agents": "agents: variables and optimizers",
    "pretrained": "pretrained agents, from whom methods begin",
    "method": "what a method remembers",
    "data": "training and test examples",
}
"""What a run holds, and how to say it."""
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3))


def duration(seconds: int | float) -> str:
    """Seconds in the unit that suits them."""
    for unit, size in UNITS:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def on_what(found: Estimate) -> str:
    """The devices of an estimate."""
    return f"{found.devices} x {found.device.label}"


def memory_table(found: Estimate) -> Table:
    """Bytes on one device."""
    rows = [[text, shown_bytes(getattr(found.held, name))] for name, text in HELD.items()]
    rows.append(["neighbours' networks in a merge", shown_bytes(found.merging)])
    if found.temporaries is None:
        rows.append(
            ["temporaries: not known; gradients at least", shown_bytes(found.held.gradients)]
        )
    else:
        rows.append(["temporaries of the largest program", shown_bytes(found.temporaries)])
    rows.append(
        ["in total" if found.temporaries else "in total, at least", shown_bytes(found.total)]
    )
    rows.append(["there is", shown_bytes(found.memory)])
    if found.devices > 1:
        rows.append(["sent over the busiest link in a merge", shown_bytes(found.link)])
    return Table(f"Memory of one device, of {on_what(found)}", ["what", "bytes"], rows)


def time_table(found: Estimate) -> Table:
    """The parts of a run, and the time that they take at least."""

    def row(part) -> list[str]:
        computes = EMPTY if part.memory is None else shown_bytes(part.memory.temporaries)
        work = f"{part.operations / 1e9:.4g}", shown_bytes(part.moved), duration(part.seconds)
        return [part.name, *work, computes]

    rows = [row(part) for part in found.parts]
    for name in ("epoch", "merge", "run"):
        seconds = duration(getattr(found, f"{name}_seconds"))
        rows.append([f"a whole {name}" if name == "run" else f"each {name}", "", "", seconds, ""])
    title = f"Time at least (a roofline: {found.device.source}), all agents, on {on_what(found)}"
    columns = ["part", "10⁹ operations", "moved", "at least", "temporaries"]
    return Table(title, columns, rows)


def verdict(found: Estimate) -> str:
    """Whether it fits, in a sentence; and what is not known."""
    if found.fits is None:
        return (
            "It may fit: what its programs compute with is not known, for nothing was compiled "
            f"({found.why_not_compiled})."
        )
    if found.fits:
        return "It fits."
    least = "" if found.temporaries is not None else "at least "
    advice = f": reduce {', or '.join(found.reduce)}" if found.reduce else ""
    return (
        f"It does not fit: it needs {least}{shown_bytes(found.total)} of "
        f"{shown_bytes(found.memory)} on a device{advice}."
    )
