"""Documents as JSON that every reader takes, and takes for the same."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any


def json_text(document: Any, **layout: Any) -> str:
    """The document as JSON, null in place of NaN and infinities, for which JSON has no word.

    Args:
        document: of dicts, lists, tuples, texts and numbers.
        layout: as `json.dumps` takes it, `indent` and `sort_keys`.
    """
    return json.dumps(_finite(document), allow_nan=False, **layout)


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as `object_pairs_hook` of `json.loads`, which would take the last of two.

    Raises:
        ValueError: a key is repeated.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"a key is repeated: {repeated!r}")
    return values


def _finite(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _finite(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
