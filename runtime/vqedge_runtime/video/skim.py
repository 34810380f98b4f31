"""Tells which packets hold a frame that will be looked at, so that a decoder may leave out others.

A decoder can only leave out frames that no other frame refers to (about half of H.264's). Which
frame is on screen at an instant is known once its successor is: packets come in decoding order, and
no frame is shown before it is decoded, so all frames up to a packet's decoding time are known.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from av.packet import Packet
from av.video.stream import VideoStream

_MOST_HELD = 64  # packets; decoders reorder 16 at most
_MOST_TIMES = 256
_ROUNDING = 2  # ticks that an instant may be off

VideoPacket: TypeAlias = "Packet[VideoStream]"


def skimmed(
    packets: Iterable[VideoPacket | None],
    instants_s: Sequence[float],
    ticks: Callable[[float], int],
) -> Iterator[tuple[VideoPacket | None, bool]]:
    """Every packet, with whether its frame is wanted: shown at an instant, or the next one after.

    Args:
        packets: in decoding order, from a key frame on.
        instants_s: seconds in growing order, for a whole walk.
        ticks: makes time stamps of them.
    """
    held: deque[VideoPacket] = deque()
    times: list[int] = []
    known_to: int | None = None
    packets = iter(packets)
    for packet in packets:
        if packet is None or packet.pts is None or _is_disordered(packet, known_to):
            yield from ((each, True) for each in (*held, packet, *packets))
            return  # the end, or time stamps that tell nothing about the rest
        known_to = known_to if packet.dts is None else packet.dts
        insort(times, packet.pts)
        held.append(packet)
        while held and _is_settled(held[0], times, known_to):
            settled = held.popleft()
            yield settled, _is_wanted(settled.pts or 0, times, instants_s, ticks)
        if len(held) > _MOST_HELD:
            yield held.popleft(), True
        del times[:-_MOST_TIMES]


def _is_disordered(packet: VideoPacket, known_to: int | None) -> bool:
    if packet.dts is None or packet.pts is None:
        return False
    return packet.pts < packet.dts or (known_to is not None and packet.dts <= known_to)


def _is_settled(packet: VideoPacket, times: list[int], known_to: int | None) -> bool:
    after = bisect_right(times, packet.pts or 0)
    return known_to is not None and after < len(times) and times[after] <= known_to


def _is_wanted(
    pts: int, times: list[int], instants_s: Sequence[float], ticks: Callable[[float], int]
) -> bool:
    """Whether an instant lies between the frames before and after this one."""
    before, after = bisect_left(times, pts) - 1, bisect_right(times, pts)
    if before < 0 or after >= len(times):
        return True
    first = bisect_left(instants_s, times[before] - _ROUNDING, key=ticks)
    return first < len(instants_s) and ticks(instants_s[first]) <= times[after] + _ROUNDING
