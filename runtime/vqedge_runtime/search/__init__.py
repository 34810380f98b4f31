"""Searching `.vqt` files: which are like a clip, which are the same, which codes are new.

`measure.py` says how alike clips are, `bounds.py` how alike they can be at most, `schema.py` and
`index.py` keep what a folder holds, `blobs.py` reads that back, `query.py` asks, `folder.py` puts
them together.
"""

from vqedge_runtime.search.folder import ask_folder
from vqedge_runtime.search.index import Refresh
from vqedge_runtime.search.measure import space_of
from vqedge_runtime.search.query import Hit, Novelty, Query, duplicates, novel, similar

__all__ = [
    "Hit",
    "Novelty",
    "Query",
    "Refresh",
    "ask_folder",
    "duplicates",
    "novel",
    "similar",
    "space_of",
]
