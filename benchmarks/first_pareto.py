"""Do W-Gates-style gates beat the simple rivals at equal *measured* latency and equal training cost?

    python benchmarks/_dense.py                                        # once: the two dense networks
    python benchmarks/first_pareto.py                                  # everything; goes on run by run
    python benchmarks/first_pareto.py --network lite0 --budgets 45% --seeds 1

`hwprune compare` with `wgates` and the controls on both networks of `_networks.py`; `methods.py` adds the other
published methods and shares the runs.
"""

from __future__ import annotations

from _networks import main

METHODS = ("wgates", "greedy", "uniform", "magnitude", "random")

if __name__ == "__main__":
    main(__doc__ or "", METHODS, "first_pareto")
