from __future__ import annotations

import json
from typing import Any

from hwprune.core.measurement import LayerTime


def layers_of(text: str) -> list[dict[str, Any]]:
    return [item for item in json.loads(text).get("Layers", []) if isinstance(item, dict)]


def layer_times(text: str) -> tuple[LayerTime, ...]:
    found = []
    for item in layers_of(text):
        kind = {"Convolution": "Conv"}.get(item.get("ParameterType", ""), item.get("ParameterType", ""))
        nodes = [part.split("]")[0] for part in item.get("Metadata", "").split("[ONNX Layer: ")[1:]] or item[
            "Name"
        ].split(" + ")
        ins, outs = (tuple(tuple(t["Dimensions"]) for t in item[side]) for side in ("Inputs", "Outputs"))
        found.append(LayerTime(nodes[0], kind, 0.0, ins, outs, item["Name"]))
    return tuple(found)


def fp32_layers(text: str) -> tuple[str, ...]:
    return tuple(
        item["Name"]
        for item in layers_of(text)
        if item.get("ParameterType") != "Reformat"
        and any("FP32" in t.get("Format/Datatype", t.get("Datatype", "")) for t in item["Outputs"])
    )
