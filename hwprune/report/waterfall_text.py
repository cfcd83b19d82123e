"""x"""

from __future__ import annotations


def waterfall_text(w: object, limit: int) -> str:
    return ""
