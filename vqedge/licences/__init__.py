"""Licence texts that travel with every bundle."""

from __future__ import annotations

from importlib import resources

from vqedge.base.sources import Source, licence_line


def licence_texts(sources: list[Source]) -> dict[str, str]:
    """Files for a bundle's `LICENSES/`: the texts, and a notice of what is under which."""
    texts = {
        item.name: item.read_text(encoding="utf-8")
        for item in resources.files(__package__).iterdir()
        if item.name.endswith(".txt")
    }
    lines = ["This bundle was made by vqedge (Apache-2.0) and holds weights derived from:", ""]
    lines += [f"- {licence_line(source)}" for source in sources]
    return texts | {"NOTICE.txt": "\n".join(lines) + "\n"}
