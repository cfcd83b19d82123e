"""Check the JSON document of `hwprune search --json` on standard input: the budget was met, by a measurement.

hwprune search --latency 60% --json | python tools/check_search.py
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Exit 1 with a sentence when the document does not show a pass."""
    printed = sys.stdin.read()
    document = json.loads(printed[printed.index('{"schema"' if '{"schema"' in printed else "{\n") :])
    if document["schema"] != "hwprune.search/1" or document["verdict"] != "pass" or document["simulated"]:
        sys.exit(f"not a measured pass: {document['verdict']!r}, simulated: {document['simulated']}")
    low, high = document["measured_ci_ms"]
    if not low <= document["measured_ms"] <= high <= document["budget_ms"]:
        sys.exit(f"measured {low}..{high} ms against a budget of {document['budget_ms']} ms")
    print(
        f"budget {document['budget_ms']:.3f} ms, measured {document['measured_ms']:.3f} ms "
        f"[{low:.3f}, {high:.3f}], score {document['score']:.4f} (dense {document['dense_score']:.4f}), "
        f"{document['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
