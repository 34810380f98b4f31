"""One row a comparison, printed once."""

from __future__ import annotations

from dataclasses import dataclass, field

from float64_reference import Agreement

_HEAD = f"{'case':<44}{'flipped':>9}{'wrong':>7}{'margin off by':>15}"


@dataclass
class Table:
    """What the tests of this folder compared."""

    rows: list[str] = field(default_factory=list)

    def add(self, case: str, found: Agreement) -> None:
        self.rows.append(f"{case:<44}{found.flipped:>9}{found.wrong:>7}{found.worst_margin:>15.2e}")

    def text(self) -> str:
        return "\n".join([_HEAD, *self.rows])
