"""Sizes for the tests of the kernel. Random vectors, duplicates, near ties, NaN, misaligned
pointers, repeats, captured graphs and the sanitizer each reach every kernel of
`nearest_codebook.cu`, which are, by their tiles:

- narrow: `tensor_kernel` with 32 codes a tile, up to 32 codes;
- small: with 64, up to 64 codes;
- middle: with 128, for more codes, as long as tiles of 128 rows x 256 codes would be fewer than the
  GPU's multiprocessors (of which 7 are enough here);
- largest: with 128 x 256, for more than 128 codes, where such tiles are enough (up to 258
  multiprocessors get them here). A Hopper takes `hopper_kernel` for it. A Turing has no room for it
  and stays with the middle one.

float32, and bfloat16 on a Turing, take the three of `fma_kernel` by k alone: up to 32, 64, more.
`tests/export/test_nearest_codebook_kernel.py` asks the kernel's host code, where there is no GPU.
"""

from __future__ import annotations

from itertools import product

TILES = {  # (n, k) with tails in both, and k by 2 and by 3
    "narrow": (1_000, 30),
    "small": (1_000, 60),
    "middle": (250, 600),  # 6 of the largest tiles
    "largest": (11_000, 600),  # 258
}
REPEATED = ((23_328, 32), (23_328, 64), (250, 600), (23_328, 8_192))
ROWS, CODES, COLUMNS = (0, 1, 31, 23_328), (1, 7, 32, 64, 1_024, 8_192), (3, 64, 384, 896, 1_152)
SANITIZED = (  # (n, k, d): one tile, tails in all directions, several tiles of codes
    *((1, 1, 3), (31, 7, 64), (65, 33, 72), (250, 600, 67)),
    (11_000, 600, 328),  # six slices, so that the ring turns over
)
RANDOM = [  # (n, k, d): all of the smaller ones; the largest only with the largest
    (n, k, d)
    for n, k, d in product(ROWS, CODES, COLUMNS)
    if n < max(ROWS) or d in (3, 1_152) or k <= 32
]
