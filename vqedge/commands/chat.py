"""`vqedge chat`: question after question about videos that are encoded and read once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from vqedge.budget import Budget
from vqedge.commands.ask import say_if_cut
from vqedge.commands.encode import with_suffix
from vqedge.commands.output import result, say, say_note
from vqedge.commands.pipe import require_there
from vqedge.commands.session import BEST_HERE, RunsOn, open_session
from vqedge.commands.span import check_span
from vqedge.errors import ConfigError, VqedgeError
from vqedge.seconds import seconds_from_text
from vqedge_runtime import DecodingOptions, Video, VideoQA
from vqedge_runtime.llm import Exchange
from vqedge_runtime.stored import stamp_from_path
from vqedge_runtime.video import Span
from vqedge_runtime.vqt import is_vqt

HELP = """\
/video PATH [START [END]]   talk about another video, or a .vqt; from a time on, as 90 or 1:30
/tokens                     what the video became
/save PATH                  write it to a .vqt
/history on                 let questions refer to earlier ones about this video; off again
/help                       this
/quit, /exit, /bye          leave, as does the end of the input
anything else is a question; each one stands alone, unless /history is on"""

_MOST_TURNS, _LET_GO = 8, 4  # at once: the model reads anew what is left after those let go
_MOST_VIDEOS = 16
_LEAVE = ("/quit", "/exit", "/bye")


def run_chat(
    video: Path,
    bundle: Path | None = None,
    *,
    budget: Budget | None = None,
    span: Span = (None, None),
    runs_on: RunsOn = BEST_HERE,
    options: DecodingOptions | None = None,
    history: bool = False,
) -> None:
    """Answer every line of standard input; what cannot be done is said and ends nothing.

    Raises:
        VideoError, VqtError: the first video cannot be read.
        UsageError: no video has the span.
    """
    check_span(span)
    require_there(video)
    with open_session(bundle, runs_on, is_vqt(video), budget) as qa:
        Chat(qa, video, budget, history, options, span).talk(_lines())


class Chat:
    """A talk about one video at a time; the last sixteen are not encoded again, unless they change.

    Args:
        qa: the open session.
        video: what to begin with.
        budget: most tokens of a video; a later `.vqt` has its own.
        history: let the model read earlier turns about the video, the last five to eight.
        options: how to pick tokens; greedy by default.
        span: the part of it to look at, in seconds.
    """

    def __init__(
        self,
        qa: VideoQA,
        video: Path,
        budget: Budget | None = None,
        history: bool = False,
        options: DecodingOptions | None = None,
        span: Span = (None, None),
    ) -> None:
        self.qa, self.budget, self.history, self.options = qa, budget, history, options
        self._turns: list[Exchange] = []
        self._encode = lru_cache(_MOST_VIDEOS)(lambda stamp, *what: qa.encode(*what))
        self.video = self._encoded(video, budget, span)
        self._commands: dict[str, Callable[[str], None]] = {
            "/video": self._switch,
            "/tokens": self._show_tokens,
            "/save": self._save,
            "/history": self._set_history,
            "/help": lambda _: say(HELP, always=True),
        }

    def talk(self, lines: Iterator[str]) -> None:
        """Take lines until they end or one says to leave."""
        for line in map(str.strip, lines):
            if line in _LEAVE:
                return
            try:
                self._take(line)
            except VqedgeError as error:
                say(f"vqedge: {error}", always=True)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                result("")  # ends what the line asked for, not the talk

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            if line:
                self._answer(line)
            return
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            raise ConfigError(f"{name}: no such command; /help lists them")
        self._commands[name](rest.strip())

    def _answer(self, question: str) -> None:
        turns = self._turns if self.history else ()
        asked = self.qa.stream(self.video, question, options=self.options, history=turns)
        with asked as stream:
            for piece in stream:
                result(piece, end="")
        result("")
        self.video = stream.answer.video
        self._turns.append(Exchange(question, stream.answer.text))
        if len(self._turns) > _MOST_TURNS:
            del self._turns[:_LET_GO]
        timings = stream.answer.timings
        say(f"first token after {timings.first_token:.0f} ms, total {timings.total:.0f} ms")
        say_if_cut(stream.answer)

    def _switch(self, rest: str) -> None:
        if not rest:
            raise ConfigError("/video: give a path, as /video clip.mp4")
        path, span = _path_and_span(rest)
        self.video = self._encoded(path, None if is_vqt(path) else self.budget, span)
        self._turns.clear()

    def _set_history(self, choice: str) -> None:
        if choice not in ("on", "off"):
            raise ConfigError("/history: say on or off")
        self.history = choice == "on"
        self._turns.clear()
        how = "may refer to earlier ones" if self.history else "stand alone"
        say(f"questions {how} from now on", always=True)

    def _save(self, path: str) -> None:
        if not path:
            raise ConfigError("/save: give a path, as /save clip.vqt")
        out = with_suffix(Path(path))
        self.qa.save(self.video, out)
        say(f"{out}: {out.stat().st_size} bytes", always=True)

    def _show_tokens(self, _rest: str) -> None:
        tokens = self.video.tokens
        if not tokens.count:
            raise ConfigError("/tokens: they follow the question; ask one first")
        patches = tokens.index_map.reshape(-1).tolist()
        shares = ", ".join(
            f"{code}: {patches.count(code) / len(patches):.1%}"
            for code in range(tokens.codes.count)
        )
        say(
            f"{tokens.count} of {tokens.patches} visual tokens; patches of each: {shares}",
            always=True,
        )
        if tokens.ids is not None:
            say(f"ids: {tokens.ids.tolist()}", always=True)

    def _encoded(self, path: Path, budget: Budget | None, span: Span) -> Video:
        video = self._encode(stamp_from_path(path), path, budget, *span)
        length = f"{video.duration_s:.1f} s" + (f" from {video.start_s:g} s" if video.part else "")
        tokens = f"{video.tokens.count} tokens" if video.tokens.count else "tokens by question"
        say(f"{path}: {length}, {tokens}; /help for commands, /quit to leave")
        say_note(path, video.note)
        return video


def _path_and_span(text: str) -> tuple[Path, Span]:
    """A path and up to two times after it, as far as no file is called all of that."""
    times: list[float] = []
    while len(times) < 2 and not Path(text).exists():
        path, _, last = text.rpartition(" ")
        try:
            time_s = seconds_from_text(last)
        except ValueError:
            break
        if not path:
            break
        text, times = path.rstrip(), [time_s, *times]
    start_s, end_s, *_ = (*times, None, None)
    return Path(text), (start_s, end_s)


def _lines() -> Iterator[str]:
    """Lines of standard input; at a terminal with a prompt, editing and history."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - input() uses it once it is loaded
    with suppress(EOFError):
        while True:
            yield input("> ")
