"""The plot of a comparison: a method looks the same wherever it is drawn."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hwprune.core import plugins
from hwprune.core.measurement import Target
from hwprune.report.comparison import ComparedRun, MethodComparison
from hwprune.report.comparison_plot import COLOURS, colour_class, comparison_plot


def comparison(*methods: str) -> MethodComparison:
    runs = tuple(
        ComparedRun("60%", method, 0, "pass", share=0.6, share_ci=(0.59, 0.61), score=0.9 + 0.01 * place)
        for place, method in enumerate(methods)
    )
    return MethodComparison(
        model="net",
        data="data",
        target=Target("cpu", "onnxruntime"),
        score_name="top-1",
        dense_score=0.95,
        total_epochs=1.0,
        train_images=100,
        runs=runs,
        differences=(),
        simulated=False,
    )


def marks(svg: str, tag: str) -> set[str]:
    kinds = {element.get("class", "") for element in ElementTree.fromstring(svg).iter() if element.tag.endswith(tag)}
    return {kind for kind in kinds if kind.startswith("method")}


def test_a_method_has_one_colour_in_every_plot() -> None:
    known = plugins.names("hwprune.methods")
    assert len({colour_class(name) for name in known}) == len(known) <= len(COLOURS)
    for methods in (("dhp", "gdp"), ("uniform", "gdp")):
        svg = comparison_plot(comparison(*methods))
        kinds = {colour_class(name) for name in methods}
        assert marks(svg, "circle") == marks(svg, "polyline") == kinds
        notes = {item.text: item.get("class") for item in ElementTree.fromstring(svg).iterfind(".//{*}text")}
        assert notes["gdp"] == f"note {colour_class('gdp')}"


def test_the_key_has_the_best_method_on_top() -> None:
    svg = comparison_plot(comparison("uniform", "gdp", "dhp"))  # each a point better than the one before
    notes = [
        item for item in ElementTree.fromstring(svg).iterfind(".//{*}text") if item.text in ("uniform", "gdp", "dhp")
    ]
    assert [item.text for item in sorted(notes, key=lambda item: float(item.get("y", "")))] == ["dhp", "gdp", "uniform"]


def test_a_variant_is_dashed_in_the_colour_of_its_method() -> None:
    plain, variant = colour_class("metapruning"), colour_class("metapruning:sampler=random")
    assert variant == f"{plain} variant"
    svg = comparison_plot(comparison("metapruning", "metapruning:sampler=random"))
    assert marks(svg, "circle") == {plain, variant}
    assert "polyline.variant{stroke-dasharray" in svg


def test_every_colour_has_one_for_a_dark_ground() -> None:
    svg = comparison_plot(comparison("greedy"))
    grounds = svg.partition("@media (prefers-color-scheme: dark){.method")[::2]
    light, dark = (dict(re.findall(r"method(\d+){--own:(#\w+)}", f"method{part}")) for part in grounds)
    assert light.keys() == dark.keys() == {str(place) for place in range(len(COLOURS))}
    assert not set(light.values()) & set(dark.values())
