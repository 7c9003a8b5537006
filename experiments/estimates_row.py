"""One row of `experiments.estimates`, as CSV on standard output."""

import csv
import sys

from experiments.estimates import configuration


def main(name: str, device: str, compiles: str) -> None:
    """Estimates a configuration on a device."""
    from dimat_jax.estimate.estimate import estimate
    from dimat_jax.report.estimates import duration
    from dimat_jax.simulation.memory import shown_bytes

    found = estimate(configuration(name), device, compiles=compiles == "True")
    held = found.held.total - found.held.gradients
    known = found.temporaries is not None
    fits = {True: "yes", False: "no", None: "?"}[found.fits]
    advice = f" ({' or '.join(found.reduce)})" if found.reduce else ""
    csv.writer(sys.stdout).writerow(
        [
            name,
            device,
            found.devices,
            shown_bytes(held),
            shown_bytes(found.merging),
            shown_bytes(found.temporaries) if found.temporaries is not None else "-",
            ("" if known else "> ") + shown_bytes(found.total),
            shown_bytes(found.memory),
            fits + advice,
            *(duration(x) for x in (found.epoch_seconds, found.merge_seconds, found.run_seconds)),
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
