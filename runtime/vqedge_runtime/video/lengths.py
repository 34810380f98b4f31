"""How long a video is: by its header, unless there is none or it may mislead; then by reading."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from av.packet import Packet
from av.stream import Stream

from vqedge_runtime.video.clock import Clock
from vqedge_runtime.video.source import Source

MAX_PACKETS = 20_000_000  # packets counted to find a missing duration
LENGTH_SLACK_S = 0.5  # players round: lengths that differ by no more are the same
_PROBES = 16  # places of a file whose clock is looked at
_MATROSKA, _MPEG_TS, _MPEG_PS = "matroska,webm", "mpegts", "mpeg"


@dataclass(frozen=True)
class Length:
    """Seconds of video, and whether a time stamp names one place in the file."""

    duration_s: float
    can_seek: bool = True


def length_told(source: Source) -> Length | None:
    """What the header says; None where it does not, or where that needs a look at the packets."""
    declared_s = source.declared_duration_s()
    if declared_s is None or _is_estimate(source) or _starts_late(source):
        return None
    return Length(declared_s)


def length_found(source: Source) -> Length:
    """What the packets say, or the header where they agree with it; uses the source up."""
    declared_s = source.declared_duration_s()
    if declared_s is None:
        return Length(_measured_s(source))
    if _starts_late(source):
        return Length(_without_the_start_s(source, declared_s))
    if source.format_name == _MPEG_TS and not _probes_contradict(source, declared_s):
        return Length(declared_s)
    found_s = _measured_s(source)
    if found_s <= declared_s + LENGTH_SLACK_S:
        return Length(declared_s)
    return Length(found_s, can_seek=False)


def whole_lasts(source: Source) -> bool:
    """Whether the header tells one length for all streams, and any is that long; uses it up."""
    if source.tells_own_length:
        return False
    end_s = source.whole_duration_s - LENGTH_SLACK_S
    return any(_end_s(packet) >= end_s for packet in source.all_packets_near(end_s))


def _end_s(packet: Packet[Stream]) -> float:
    """End of a whole packet on the clock of its file; below all where that is not known."""
    if packet.is_corrupt or packet.pts is None or packet.time_base is None:
        return -math.inf
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _measured_s(source: Source) -> float:
    """Seconds of video found by reading every packet without decoding."""
    clock, stamped = Clock(source.step_s), False
    first_s, end_s = source.time_s(source.origin_pts), 0.0
    for index, packet in enumerate(source.packets()):
        if packet is None or index >= MAX_PACKETS:
            break
        stamped = stamped or packet.pts is not None
        start_s = clock.placed_s(source.time_s(packet.pts)) if stamped else index * source.step_s
        first_s = start_s if first_s is None else first_s
        end_s = max(end_s, start_s + (source.lasts_s(packet) or source.step_s))
    return max(0.0, end_s - (first_s or 0.0))


def _is_estimate(source: Source) -> bool:
    """MPEG streams tell no length: FFmpeg takes the time stamps of their first and last parts.

    Joined recordings, or pictures far apart, make that wrong.
    """
    return not source.is_still and source.format_name in (_MPEG_TS, _MPEG_PS)


def _probes_contradict(source: Source, declared_s: float) -> bool:
    """Whether time stamps fall from one part of the file to a later one, or pass the length.

    Where no picture follows, the rest of the file was read in search of one: nothing else is.
    """
    found_s: list[float] = []
    for number in range(_PROBES):
        time_s = source.stamp_from_byte(source.size_bytes * number // _PROBES)
        if time_s is None:
            break
        found_s.append(time_s)
    source.seek_byte(0)
    falls = any(after < before - LENGTH_SLACK_S for before, after in pairwise(found_s))
    return falls or max(found_s, default=0.0) > declared_s + LENGTH_SLACK_S


def _starts_late(source: Source) -> bool:
    """Matroska tells one length, which counts from 0 and not from the first picture."""
    late = source.starts_s > LENGTH_SLACK_S
    return late and source.format_name == _MATROSKA and not source.tells_own_length


def _without_the_start_s(source: Source, declared_s: float) -> float:
    """A length from the first picture on, unless pictures show that it is one already."""
    known_s = declared_s + LENGTH_SLACK_S
    packets = (p for p in source.all_packets_near(known_s) if p.stream.type == "video")
    if any(_end_s(packet) > known_s for packet in packets):
        return declared_s
    return max(declared_s - source.starts_s, source.step_s)
