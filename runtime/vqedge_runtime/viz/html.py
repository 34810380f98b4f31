"""The sheet as one HTML page: nothing to load, no script; pointing at a code shows where it is."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqedge_runtime.viz.canvas import resized
from vqedge_runtime.viz.picture import Picture, plain

_SIDE = 224  # of an embedded frame, at most
_QUALITY = 82
_CELL, _BAND = 60, 14  # units of a row's drawing: width of a frame, height of the row

_STYLE = """
:root { color-scheme: light; --ink: #1c2026; --quiet: #6a727e; --rule: #dadee4; --mark: #c44014; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px; max-width: 1500px; color: var(--ink); background: #fff;
  font: 14px/1.4 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 24px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0; color: var(--quiet); }
p.asked { color: var(--mark); font-size: 17px; margin: 12px 0; overflow-wrap: anywhere; }
.frames { display: flex; flex-wrap: wrap; gap: 8px; margin: 12px 0 20px; }
figure { margin: 0; flex: 1 1 120px; max-width: 224px; position: relative; }
figure svg { display: block; width: 100%; border-radius: 3px; background: #ececec; }
figcaption { text-align: center; font-size: 12px; color: var(--quiet); }
svg image { filter: grayscale(1); }
.map path { fill-opacity: .66; stroke: #0006; stroke-width: .04; }
.bare .map path { fill-opacity: 1; }
body:has(#plain:checked) .map { display: none; }
body:has(#plain:checked) svg image { filter: none; }
table { border-collapse: collapse; width: 100%; }
th { font-weight: 400; font-size: 12px; color: var(--quiet); text-align: left; padding: 2px 8px; }
td { padding: 0 8px; white-space: nowrap; }
td.n, th.n { text-align: right; width: 1%; }
td.line { width: 70%; padding: 0; }
td.line svg { display: block; width: 100%; height: 16px; }
tbody tr:nth-child(odd) { background: #f6f7f9; }
tbody tr:hover { background: #e8edf5; }
tr.mark td.n { font-weight: 600; }
.swatch { display: inline-block; width: 10px; height: 10px; margin-left: 6px; }
label { font-size: 13px; color: var(--quiet); }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html_from_picture(picture: Picture) -> bytes:
    """A page that shows the picture; it holds no word of others that is not escaped."""
    bare = ' class="bare"' if picture.frames_thwc is None else ""
    parts = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{_words(picture.title)}</title>",
        f"<style>{_STYLE}{_pointing(picture)}</style>\n</head>",
        f"<body{bare}>\n<h1>{_words(picture.title)}</h1>\n<p>{_words(picture.summary)}</p>",
        _asked(picture),
        "" if bare else '<label><input type="checkbox" id="plain"> frames only</label>',
        _frames(picture),
        _table(picture),
        "<p>Height of a band: square root of the code's share of the frame. "
        "Point at a row to see where its code is.</p>\n</body>\n</html>\n",
    )
    return "\n".join(part for part in parts if part).encode("utf-8", "backslashreplace")


def _words(text: str) -> str:
    """Text that is text in a page: markup escaped, what cannot be printed a question mark."""
    return escape(plain(text))


def _pointing(picture: Picture) -> str:
    """Marked codes stand out; the code of the row pointed at stands out alone."""
    rules = [
        f"body:has(.r{code}:hover) .map path:not(.c{code}){{fill-opacity:.08}}\n"
        f"body:has(.r{code}:hover) .map path.c{code}{{fill-opacity:.9}}"
        for code in picture.shown_codes
    ]
    if picture.marked:
        kept = "".join(f":not(.c{code})" for code in picture.marked)
        rules.insert(0, f".map path{kept}{{fill-opacity:.14}}")
    return "\n".join(rules)


def _asked(picture: Picture) -> str:
    evidence = picture.evidence
    if evidence is None:
        return ""
    return (
        f'<p class="asked">{_words(picture.question)} <b>{_words(evidence.answer)}</b></p>\n'
        f"<p>evidence from {evidence.start_s:.2f} to {evidence.end_s:.2f} s: nats by which the "
        f"answer ({evidence.log_likelihood:.2g} nats with all codes) is likelier where a code is "
        "read</p>"
    )


def _frames(picture: Picture) -> str:
    figures = "\n".join(_figure(picture, number) for number in picture.shown_frames)
    return f'<div class="frames">\n{figures}\n</div>'


def _figure(picture: Picture, number: int) -> str:
    index_map = picture.codes.index_map[number]
    rows, columns = index_map.shape
    image = ""
    if picture.frames_thwc is not None:
        data = _jpeg(picture.frames_thwc[number])
        image = (
            f'<image href="{data}" width="{columns}" height="{rows}" preserveAspectRatio="none"/>'
        )
    paths = "".join(
        f'<path class="c{code}" fill="{_hex(picture, code)}" d="{_area(index_map == code)}">'
        f"<title>code {code}</title></path>"
        for code in np.unique(index_map).tolist()
    )
    return (
        f'<figure><svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" '
        f'style="aspect-ratio:{picture.shown_aspect:.4f}">{image}<g class="map">{paths}</g></svg>'
        f"<figcaption>{picture.times_s[number]:.2f} s</figcaption></figure>"
    )


def _area(own: npt.NDArray[np.bool_]) -> str:
    """A path over patches, one box a run of them in a row."""
    padded = np.pad(own, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.argwhere(np.diff(padded, axis=1)).reshape(-1, 2, 2)
    return "".join(f"M{a} {row}H{b}V{row + 1}H{a}z" for (row, a), (_, b) in edges.tolist())


def _table(picture: Picture) -> str:
    asked = picture.evidence is not None
    head = '<th class="n">code</th><th>when</th><th class="n">share</th>'
    head += '<th class="n">nats</th>' if asked else ""
    rows = "\n".join(_row(picture, code) for code in picture.shown_codes)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _row(picture: Picture, code: int) -> str:
    color, mass, drops = _hex(picture, code), picture.mass, picture.drops
    mark = " mark" if code in picture.marked else ""
    evidence = f'<td class="n">{drops[code]:+.2g}</td>' if code in drops else ""
    return (
        f'<tr class="r{code}{mark}"><td class="n">{code}'
        f'<span class="swatch" style="background:{color}"></span></td>'
        f'<td class="line">{_line(picture, code, color)}</td>'
        f'<td class="n">{mass[:, code].mean():.1%}</td>{evidence}</tr>'
    )


def _line(picture: Picture, code: int, color: str) -> str:
    """Presence in every shown frame, a box each."""
    mass, frames = picture.mass, picture.shown_frames
    boxes = []
    for column, number in enumerate(frames):
        if share := mass[number, code]:
            high = max(2.0, _BAND * (share / mass.max()) ** 0.5)
            top = (_BAND - high) / 2
            boxes.append(f"M{column * _CELL} {top:.1f}h{_CELL}v{high:.1f}h-{_CELL}z")
    box = f"0 0 {len(frames) * _CELL} {_BAND}"
    path = f'<path fill="{color}" d="{"".join(boxes)}"/>'
    return f'<svg viewBox="{box}" preserveAspectRatio="none">{path}</svg>'


def _hex(picture: Picture, code: int) -> str:
    return "#" + bytes(picture.colors[code]).hex()


def _jpeg(frame_hwc: npt.NDArray[np.uint8]) -> str:
    """A frame inside of the page."""
    side = min(_SIDE, frame_hwc.shape[0])
    file = BytesIO()
    Image.fromarray(resized(frame_hwc, side, side)).save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
