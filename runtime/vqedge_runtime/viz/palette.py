"""One colour a code: far apart for all eyes, and the same on every machine.

Colours are picked one after another, each as far as can be from all before it. Distance is that of
OKLab, the least of what four kinds of eyes see: those with all cones, and those without one of the
three (Machado et al., 2009). Thirty-two colours cannot be told apart by everybody, so whatever uses
them writes the number of the code as well.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Colors = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float64]

_MOST = 128  # more repeat
_STEPS = 14  # candidates a channel
_LIGHTNESS, _CHROMA = (0.46, 0.90), (0.06, 0.19)
_FIRST = (70, 120, 220)
_TO_LMS = ((0.4122214708, 0.5363325363, 0.0514459929),
           (0.2119034982, 0.6806995451, 0.1073969566),
           (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
_TO_LAB = ((0.2104542553, 0.7936177850, -0.0040720468),
           (1.9779984951, -2.4285922050, 0.4505937099),
           (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip
# What linear light looks like without one cone, and how much a distance seen so counts for.
_EYES = (
    (1.0, ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
    (1.5, ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
           (-0.003882, -0.048116, 1.051998))),
    (1.5, ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
           (-0.011820, 0.042940, 0.968881))),
    (2.0, ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
           (0.004733, 0.691367, 0.303900))),
)  # fmt: skip


def colors(count: int) -> Colors:
    """Colours of codes 0 to `count - 1`, uint8 RGB `[count, 3]`; beyond 128 they repeat.

    Any number of them begins as any other does: code 3 looks the same in every picture.
    """
    return np.resize(_picked(), (max(count, 1), 3))[:count]


def lightness(rgb: Colors) -> _Floats:
    """OKLab's lightness, 0 to 1, of colours `[n, 3]`."""
    lightness_n: _Floats = _lab(_linear(rgb))[:, 0]
    return lightness_n


def distances(rgb: Colors, other: Colors) -> _Floats:
    """How far colours `[n, 3]` are from one other, as the worst eyes see it, `[n]`."""
    seen = [
        weight * np.linalg.norm(_seen(rgb, eyes) - _seen(other[None], eyes), axis=1)
        for weight, eyes in _EYES
    ]
    least: _Floats = np.min(seen, axis=0)
    return least


@cache
def _picked() -> Colors:
    """All colours there are, in order."""
    candidates = _candidates()
    first = np.array(_FIRST, np.uint8)
    picked, apart = [first], distances(candidates, first)
    while len(picked) < _MOST:
        picked.append(candidates[int(apart.argmax())])
        apart = np.minimum(apart, distances(candidates, picked[-1]))
    return np.stack(picked)


def _candidates() -> Colors:
    """Colours that are neither dark, pale, grey nor glaring, `[n, 3]`."""
    steps = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(_linear(lattice))
    ranges = ((lab[:, 0], _LIGHTNESS), (np.hypot(lab[:, 1], lab[:, 2]), _CHROMA))
    return lattice[np.all([(low < x) & (x < high) for x, (low, high) in ranges], axis=0)]


def _seen(rgb: Colors, eyes: tuple[tuple[float, ...], ...]) -> _Floats:
    return _lab(np.clip(_linear(rgb) @ np.array(eyes).T, 0, 1))


def _linear(rgb: Colors) -> _Floats:
    """SRGB without its curve."""
    value = rgb.astype(np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: _Floats) -> _Floats:
    lab: _Floats = np.cbrt(linear @ np.array(_TO_LMS).T) @ np.array(_TO_LAB).T
    return lab
