"""The figures that methods report of a search, in words: for the progress display and the curves of the report."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """How a figure is called, what it says, and its unit: "" for a plain number, else what follows a percentage."""

    title: str
    meaning: str
    unit: str = ""


FIGURES = {
    "multiplier": Figure(
        "multiplier",
        "The multiplier rises while the prediction is over the budget and falls below it: the weight of latency beside"
        " that of the training loss.",
    ),
    "penalty": Figure("penalty", "How hard channels are pulled towards 0; set so that the budget is met in time."),
    "pressure": Figure("pressure", "How hard gates are pulled shut; 0 from the moment the budget is met."),
    "eps": Figure("eps", "How soft the gates are: at 0 each is open or shut."),
    "open_share": Figure("open channels", "The channels that are still there, of all that may go.", "%"),
    "between_share": Figure("half-open gates", "Gates that are neither open nor shut yet.", "%"),
    "narrowest": Figure("narrowest group", "What the most pruned channel group keeps.", "%"),
    "best_fitness": Figure("best fitness", "The best candidate so far; larger is better."),
    "mean_fitness": Figure("mean fitness", "The mean of the latest candidates; larger is better."),
    "cost": Figure("latency", "The predicted latency.", "% of dense"),
    "macs": Figure("MACs", "Multiply-accumulates of the network as it is now.", "% of dense"),
    "budget": Figure("budget", "What the predicted latency has to come down to by now.", "% of dense"),
}


def figure(name: str) -> Figure:
    """What is known of a figure; one that nobody has described is called by its name."""
    return FIGURES.get(name, Figure(name.replace("_", " "), ""))


def figure_text(name: str, value: float) -> str:
    """`penalty 0.0012`, `open channels 80.1 %`, `budget 58.5 % of dense`."""
    found = figure(name)
    return f"{found.title} {100 * value:.1f} {found.unit}" if found.unit else f"{found.title} {value:.4g}"
