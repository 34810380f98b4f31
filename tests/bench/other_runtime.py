"""A bundle whose videos are words, in another packager's llama.cpp: are the answers the same?

    python tests/bench/other_runtime.py BUNDLE [--questions 200]

Open questions of the synthetic suite, asked of `VideoQA` and, as ids alone, of the server inside of
the package xllamacpp, which knows nothing of vqedge. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

CONTEXT, MOST_TOKENS = 2048, 32


class Server:
    """The other runtime's HTTP server, at an address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        data = json.dumps(document).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def complete(self, prompt: str | Sequence[int], **options: Any) -> str:
        """Greedy text after a prompt of text or ids."""
        greedy = {"prompt": prompt, "temperature": 0, "n_predict": MOST_TOKENS}
        text: str = self.post("/completion", greedy | options)["content"]
        return text


@contextmanager
def served(gguf: Path, slots: Path) -> Iterator[Server]:
    """The GGUF in a process of its own: two builds of llama.cpp do not share one.

    Raises:
        RuntimeError: it ended before it served, with what it said last.
    """
    command = [sys.executable, __file__, "--serve", str(gguf), str(slots)]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            address = next((line for line in process.stdout if line.startswith("http")), None)
            if address is None:
                said.seek(0)
                raise RuntimeError(f"no server: {said.read()[-2000:]}")
            yield Server(address.strip())
        finally:
            process.stdin.close()
            process.kill()


def serve(gguf: str, slots: str) -> None:
    """Serve until standard input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.slot_save_path = gguf, f"{slots}/"
    params.n_ctx, params.n_parallel = CONTEXT, 1
    params.warmup, params.endpoint_slots = False, True
    params.no_extra_bufts = True  # AMX kernels crash in some builds: ggml-org/llama.cpp#20824
    # one thread: others that wait for each other take seconds a token on a busy machine
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


def measure(bundle: Path, questions: int, slots: Path) -> dict[str, Any]:
    """Ask both."""
    from vqedge.data.suites import suite_items
    from vqedge.evaluate import Tally, is_right
    from vqedge_runtime import VideoQA
    from vqedge_runtime.video_words import prompt_piece

    here, there, same = Tally(), Tally(), 0
    with VideoQA.open(bundle) as qa, served(bundle / qa.manifest.llm.file, slots) as server:
        items = (item for item in suite_items("synthetic", 2 * questions) if not item.choices)
        clip, spec = None, qa.manifest.encoder
        for item in islice(items, questions):
            if item.clip != clip:
                clip, video = item.clip, qa.encode_frames(item.clip.frames(spec.frames, spec.size))
                piece = prompt_piece(qa.manifest, video.tokens).ids
            before, after = qa.llm.prompt_ids(item.question)
            ours = qa.ask(video, item.question).text
            theirs = server.complete([*before, *piece, *after])
            here.add(is_right(ours, item.answer), clip)
            there.add(is_right(theirs, item.answer), clip)
            same += ours == theirs
        backend = {"encoder": qa.encoder.name, "llm": qa.llm.name}
    return {
        "questions": here.total,
        "backend": backend,
        "other": f"xllamacpp {version('xllamacpp')}",
        "ours": here.to_dict(),
        "theirs": there.to_dict(),
        "same_text": same / here.total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as slots:
        print(json.dumps(measure(arguments.bundle, arguments.questions, Path(slots))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:4])
    else:
        main()
