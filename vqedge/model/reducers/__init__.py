"""Reducers of other papers behind one protocol; see `registry` and docs/reducers.md."""
