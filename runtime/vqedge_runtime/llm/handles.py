"""Owned llama.cpp handles: model, context, sampler.

Each frees its memory once: in `close()`, at the end of a `with` block or when collected. Nothing
here knows about prompts or videos, and nothing is thread safe: the owner lets one thread in.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqedge.errors import BackendUnavailable, BundleError, PromptError
from vqedge.signals import signals_later
from vqedge_runtime.llm.cells import BRANCHES, Cells
from vqedge_runtime.llm.native import Owned, backend, check_team, lib, native_batch
from vqedge_runtime.llm.protocol import DecodingOptions

_BATCH = 512  # cells in one native call
_ROUND = 256  # llama.cpp rounds a context up to this, and aborts at a batch above what it was told
_OUTPUTS = 16  # logit rows in one native call; more abort the process, a limit of 512 costs 87 MB


class Model(Owned):
    """Weights and vocabulary of a GGUF file."""

    _what = "model"
    _contexts = 0  # open ones, which read the weights
    _unwanted = False

    def __init__(self, path: Path, gpu_layers: int | None = None) -> None:
        """Map the file into memory.

        Args:
            path: the GGUF file.
            gpu_layers: layers to keep on the GPU, -1 for all, 0 for the CPU alone; None for all
                where this build finds a GPU.

        Raises:
            BackendUnavailable: GPU layers are asked for and this build has no GPU.
            BundleError: the file is missing, or llama.cpp cannot read it.
        """
        if not path.is_file():
            raise BundleError(f"{path}: no such file; export or fetch the language model first")
        log = backend()
        has_gpu = bool(lib.llama_supports_gpu_offload())
        if gpu_layers is None:
            gpu_layers = -1 if has_gpu else 0
        if gpu_layers and not has_gpu:
            raise BackendUnavailable(
                "this llama.cpp finds no GPU, or was built for none; leave --gpu-layers out"
            )
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        log.errors.clear()
        with signals_later():
            self._pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        if self._pointer is None:
            if gpu_layers:
                raise BackendUnavailable(
                    f"{path}: cannot be loaded onto the GPU ({log.reason()}); ask for fewer of its "
                    "layers with --gpu-layers N, 0 for none"
                )
            raise BundleError(
                f"{path}: cannot be loaded ({log.reason()}); export or fetch it again"
            )
        self.path = path
        self.gpu_layers = gpu_layers
        self.width = int(lib.llama_model_n_embd_inp(self._pointer))
        self.vocab_size = int(lib.llama_vocab_n_tokens(self.vocab))
        self.trained_context = int(lib.llama_model_n_ctx_train(self._pointer))
        self.quantisation = lib.llama_ftype_name(lib.llama_model_ftype(self._pointer)).decode()

    def close(self) -> None:
        """Free the weights, or let the last open context do so; twice is fine.

        The garbage collector closes a model and its contexts in any order.
        """
        self._unwanted = True
        if not self._contexts:
            super().close()

    def add_context(self) -> None:
        """Count a context, which reads the weights until `drop_context`."""
        self._contexts += 1

    def drop_context(self) -> None:
        """Count one less; free the weights if they wait for that."""
        self._contexts -= 1
        if self._unwanted:
            self.close()

    def _free(self, pointer: Any) -> None:
        lib.llama_model_free(pointer)

    @property
    def vocab(self) -> Any:
        """The native vocabulary, owned by the model."""
        return lib.llama_model_get_vocab(self.pointer)

    @property
    def first_token(self) -> int | None:
        """The id every text starts with, if the vocabulary wants one."""
        wanted = lib.llama_vocab_get_add_bos(self.vocab)
        return int(lib.llama_vocab_bos(self.vocab)) if wanted else None

    @property
    def end_of_text(self) -> int:
        """The id that ends a text."""
        return int(lib.llama_vocab_eos(self.vocab))

    @functools.cached_property
    def suppressed_tokens(self) -> npt.NDArray[np.int64]:
        """Ids the file says are never to be generated: thousands where videos are words."""
        count = ctypes.c_int32(0)
        ids = lib.llama_vocab_get_suppress_tokens(self.vocab, ctypes.byref(count))
        return np.array([ids[i] for i in range(count.value)], np.int64)

    @functools.cached_property
    def suppression(self) -> Any:
        """The same for a sampler, as native biases."""
        banned = self.suppressed_tokens.tolist()
        return (lib.llama_logit_bias * len(banned))(*((token, -np.inf) for token in banned))

    def is_end(self, token: int) -> bool:
        """Whether an id ends the model's turn."""
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    def tokens_from_text(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text, nothing added.

        Args:
            text: what cannot be written as UTF-8 becomes a question mark.
            special: read `<|im_end|>` and the like as the tokens they name; never so for a
                user's words.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            count = lib.llama_tokenize(self.vocab, data, len(data), ids, room, False, special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def bytes_from_token(self, token: int) -> bytes:
        """What an id spells, maybe part of a character; nothing for special ids."""
        buffer = ctypes.create_string_buffer(64)
        size = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]

    def render_chat(self, messages: Sequence[dict[str, str]], *, open_answer: bool = True) -> str:
        """Messages in the file's own chat template.

        Args:
            messages: `role` and `content` of each.
            open_answer: end with the opening of the assistant's turn.

        Raises:
            PromptError: the file has no template, or one that llama.cpp does not know.
        """
        template = lib.llama_model_chat_template(self.pointer, None)
        if template is None:
            raise PromptError(f"{self.path} holds no chat template; export it from a chat model")
        pairs = [(m["role"].encode(), m["content"].encode()) for m in messages]
        chat = (lib.llama_chat_message * len(pairs))(*(lib.llama_chat_message(*p) for p in pairs))
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = lib.llama_chat_apply_template(
                template, chat, len(pairs), open_answer, buffer, room
            )
            if size < 0:
                raise PromptError(f"llama.cpp does not know the chat template of {self.path}")
            if size <= room:
                return buffer.raw[:size].decode()
            room = size


class Context(Owned):
    """Keys and values of what was read: sequence 0 and up to `BRANCHES` branches of it."""

    _what = "context"

    def __init__(self, model: Model, size: int, threads: int) -> None:
        """Allocate it.

        Args:
            model: its weights stay as long as this is open.
            size: positions in all sequences together, >= 1, rounded up to a multiple of 256.
            threads: for reading and for generating.

        Raises:
            BackendUnavailable: llama.cpp cannot allocate it.
        """
        params = lib.llama_context_default_params()
        params.n_ctx = -(-size // _ROUND) * _ROUND
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max = BRANCHES + 1
        params.n_outputs_max = _OUTPUTS
        params.kv_unified = params.no_perf = True
        params.offload_kqv = params.op_offload = model.gpu_layers != 0
        backend().errors.clear()
        self._model = model
        self._threads = threads
        with signals_later():
            self._pointer = lib.llama_init_from_model(model.pointer, params)
            if self._pointer is None:
                raise BackendUnavailable(
                    f"no memory for a context of {size} tokens ({backend().reason()}); "
                    "ask for a smaller one"
                )
            model.add_context()
        self.size = int(lib.llama_n_ctx(self._pointer))

    def _free(self, pointer: Any) -> None:
        lib.llama_free(pointer)
        self._model.drop_context()

    def clear(self) -> None:
        """Forget everything."""
        lib.llama_memory_clear(lib.llama_get_memory(self.pointer), False)

    def truncate(self, length: int) -> bool:
        """Keep the first positions of sequence 0, drop the rest; False if this model cannot."""
        memory = lib.llama_get_memory(self.pointer)
        return bool(lib.llama_memory_seq_rm(memory, 0, length, -1))

    def fork(self, source: int, branch: int, length: int) -> None:
        """Let sequence `branch` begin as the first positions of `source`, sharing its memory."""
        memory = lib.llama_get_memory(self.pointer)
        lib.llama_memory_seq_cp(memory, source, branch, 0, length)

    def state(self) -> bytes:
        """Keys and values of sequence 0, for `restore`."""
        size = self.state_bytes
        buffer = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data(self.pointer, buffer, size, 0)
        return memoryview(buffer)[:written].tobytes()

    @property
    def state_bytes(self) -> int:
        """Size of `state`, as long as nothing more is read."""
        return int(lib.llama_state_seq_get_size(self.pointer, 0))

    def restore(self, state: bytes, length: int) -> bool:
        """Put back what `state` gave, and nothing else; whether it was `length` positions.

        llama.cpp trusts the bytes: they must come from `state` of the same model and build.
        """
        self.clear()
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        read = lib.llama_state_seq_set_data(self.pointer, buffer, len(state), 0)
        last = lib.llama_memory_seq_pos_max(lib.llama_get_memory(self.pointer), 0)
        fits = read == len(state) and last == length - 1
        if not fits:
            self.clear()
        return bool(fits)

    @contextmanager
    def branches(self, count: int) -> Iterator[None]:
        """Sequences 1 to `count` are the block's own: empty at its end, whatever happened."""
        try:
            yield
        finally:
            memory = lib.llama_get_memory(self.pointer)
            for branch in range(1, count + 1):
                lib.llama_memory_seq_rm(memory, branch, -1, -1)

    def read(self, cells: Cells) -> None:
        """Read cells and wait until it is done.

        Raises:
            PromptError: they do not fit, or an id is not in the vocabulary.
            BackendUnavailable: llama.cpp failed, or its threads are those of a parent process.
        """
        for part in cells.parts(_BATCH, _OUTPUTS):
            self._decode(part)
        lib.llama_synchronize(self.pointer)

    def wanted(self, cells: Cells) -> Iterator[int]:
        """Read cells; for each wanted one, in order, where its logits are.

        A place is good until the next one is asked for: a long run is read in parts.

        Raises:
            PromptError: see `read`.
            BackendUnavailable: see `read`.
        """
        for part in cells.parts(_BATCH, _OUTPUTS):
            self._decode(part)
            yield from map(int, np.flatnonzero(part.wanted))

    def logits(self, cells: Cells) -> Iterator[npt.NDArray[np.float32]]:
        """Read cells; for each wanted one, in order, its logits: float32 `[vocab]`.

        Raises:
            PromptError: see `read`.
            BackendUnavailable: see `read`.
        """
        return map(self.logits_at, self.wanted(cells))

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits of the last wanted cell read, float32 `[vocab]`."""
        return self.logits_at(-1)

    def logits_at(self, place: int) -> npt.NDArray[np.float32]:
        """Logits at a place that `wanted` gave, float32 `[vocab]`; suppressed ids never come.

        Raises:
            BackendUnavailable: llama.cpp has none there.
        """
        row = lib.llama_get_logits_ith(self.pointer, place)
        if not row:
            raise BackendUnavailable("llama.cpp has no logits to give; ask again")
        row_of_all = np.ctypeslib.as_array(row, (self._model.vocab_size,))
        logits: npt.NDArray[np.float32] = row_of_all.copy()
        logits[self._model.suppressed_tokens] = -np.inf
        return logits

    def _decode(self, cells: Cells) -> None:
        backend().errors.clear()
        if self._threads > 1:
            check_team()
        with native_batch(cells) as batch:
            code = lib.llama_decode(self.pointer, batch)
        if code in (1, -1):
            reason = "the context is full" if code == 1 else backend().reason()
            raise PromptError(f"llama.cpp refuses the prompt ({reason}); shorten it")
        if code:
            raise BackendUnavailable(f"llama.cpp failed with code {code} ({backend().reason()})")


class Sampler(Owned):
    """Picks the next token."""

    _what = "sampler"

    def __init__(self, model: Model, options: DecodingOptions) -> None:
        """Chain the steps: suppressed ids, then greedy or top-k, top-p, temperature, draw."""
        self._pointer = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if count := len(model.suppressed_tokens):
            biases = model.suppression
            self._add(lib.llama_sampler_init_logit_bias(model.vocab_size, count, biases))
        if options.temperature == 0:
            self._add(lib.llama_sampler_init_greedy())
            return
        if options.top_k:
            self._add(lib.llama_sampler_init_top_k(options.top_k))
        if options.top_p < 1:
            self._add(lib.llama_sampler_init_top_p(options.top_p, 1))
        self._add(lib.llama_sampler_init_temp(options.temperature))
        self._add(lib.llama_sampler_init_dist(options.seed))

    def _add(self, step: Any) -> None:
        lib.llama_sampler_chain_add(self.pointer, step)

    def _free(self, pointer: Any) -> None:
        lib.llama_sampler_free(pointer)

    def sample(self, context: Context, place: int = -1) -> int:
        """The token after a wanted cell that the context has read, the last one by default."""
        return int(lib.llama_sampler_sample(self.pointer, context.pointer, place))
