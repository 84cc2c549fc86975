"""Claim meta-gradient-error: the largest relative error of the meta-gradient against a plain loop, float64, over every norm
and memory we ship and every kin of MAML.

    python -m benchmarks.meta_gradient
"""

from __future__ import annotations

import nestmem
from benchmarks.results import row, save
from tests.algos.test_meta_gradient import INNER_NORMS, batch, learner, relative_error


def main() -> None:
    data, errors = batch(), {}
    for norm in INNER_NORMS:
        errors[f"norm {norm}"] = max(relative_error(learner(norm, steps=steps), data) for steps in (1, 3))
    for memory in nestmem.memories():
        errors[f"memory {memory}"] = relative_error(learner("batch", memory, steps=2), data)
    for name, options in {
        "first order": {"second_order": False},
        "ANIL": {"adapt": "head"},
        "Meta-SGD": {"learn_rates": True},
    }.items():
        errors[name] = relative_error(learner("layer", steps=2, **options), data)
    worst = max(errors, key=lambda name: errors[name])
    note = f"worst is {worst}, over {', '.join(errors)}"
    save(
        "meta_gradient",
        [row("meta-gradient-error", "vmapped MAML", errors[worst], unit="relative", n=len(errors), note=note)],
    )


if __name__ == "__main__":
    main()
