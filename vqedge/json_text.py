"""Documents as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(document: Any, **layout: Any) -> str:
    """The document as JSON, null in place of NaN and infinities, for which JSON has no word.

    Args:
        document: of dicts, lists, tuples, texts and numbers.
        layout: as `json.dumps` takes it, `indent` and `sort_keys`.
    """
    return json.dumps(_finite(document), allow_nan=False, **layout)


def _finite(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _finite(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
