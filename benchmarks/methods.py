"""The published methods and the controls under one latency budget, at equal measured latency and training cost.

    python benchmarks/_dense.py                                        # once: the two dense networks
    python benchmarks/methods.py                                       # everything; goes on run by run
    python benchmarks/methods.py --network lite0 --budgets 45% --seeds 1 --methods wgates dhp gdp greedy uniform

Differences are counted from `uniform` and from `greedy`, paired over the test images.
"""

from __future__ import annotations

from _networks import main

METHODS = (
    "wgates",
    "dhp",
    "gdp",
    "s2hpruner",
    "metapruning",
    "metapruning:sampler=random",
    "widths",
    "knapsack",
    "greedy",
    "uniform",
    "magnitude",
    "random",
)

if __name__ == "__main__":
    main(__doc__ or "", METHODS, "methods")
