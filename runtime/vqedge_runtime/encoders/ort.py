"""The encoder on ONNX Runtime, by any of its execution providers."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from vqedge.cores import usable_cores
from vqedge.cuda import Cuda
from vqedge.errors import BackendUnavailable, BundleError, VqedgeError, first_line
from vqedge.files import file_sha256
from vqedge.nearest_codebook import OP_NAME
from vqedge_runtime.encoders.compiled import provider_folder
from vqedge_runtime.encoders.gpu_libraries import advice, load_libraries
from vqedge_runtime.encoders.protocol import Frames, Text, inputs_for, refusal, utf8_path
from vqedge_runtime.encoders.providers import (
    PROVIDERS,
    Provider,
    installed_versions,
    plugin_devices,
    tf32_setting,
)
from vqedge_runtime.tokens import Codes, code_outputs, codes_from_outputs

_ERRORS_ONLY, _NOTHING = 3, 4
_CPU = PROVIDERS["CPU"]
_RECORD_NODES = "session.record_ep_graph_assignment_info"
_STOP_SPINNING = "session.force_spinning_stop"  # with a run: llama.cpp wants the cores then

logger = logging.getLogger(__name__)


class OrtEncoder:
    """Runs an encoder file.

    Args:
        path: the ONNX file of a verified bundle.
        threads: worker threads; the CPUs this process may use by default.
        provider: what runs the nodes; those it cannot run are left to others, and the name says
            how many.
        precision: what the file computes in, for the name.

    Raises:
        BundleError: ONNX Runtime refuses the file.
        BackendUnavailable: the provider does not start.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        provider: Provider = _CPU,
        precision: str = "fp32",
    ) -> None:
        session = open_session(path, threads or usable_cores(), provider)
        self._session: ort.InferenceSession | None = session
        self._file = path.name
        rounding = ", TF32 allowed" if provider.may_round and tf32_setting() != "0" else ""
        self._label = f"{provider.label} {precision}{rounding}{_elsewhere(session, provider)}"
        self._outputs = code_outputs([output.name for output in session.get_outputs()])

    @property
    def clip_shape(self) -> tuple[int | str, ...]:
        """Shape of the frames that the graph takes; a free dimension is a text."""
        inputs = self._session.get_inputs() if self._session else []
        return next((tuple(item.shape) for item in inputs if item.name == "frames"), ())

    @property
    def name(self) -> str:
        """What runs where."""
        return f"onnxruntime {self._label}"

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        `text` is the question, of a bundle whose tokens follow it.

        Raises:
            BackendUnavailable: the encoder was closed.
            BundleError: the graph fails on these frames.
        """
        if self._session is None:
            raise BackendUnavailable("the encoder is closed; open the bundle again")
        feeds = inputs_for(frames_thwc, budget, text)
        values = run_session(self._session, self._outputs, feeds, self._file)
        return codes_from_outputs(dict(zip(self._outputs, values, strict=True)))

    def close(self) -> None:
        """Free the session; twice is fine."""
        self._session = None


def open_session(path: Path, threads: int, provider: Provider = _CPU) -> ort.InferenceSession:
    """Open an ONNX file; what a provider compiles for it is kept for the next time.

    Raises:
        BundleError: ONNX Runtime refuses the file.
        BackendUnavailable: the provider does not start.
    """
    load_libraries(provider)
    if provider.keeping is not None:
        try:
            with provider_folder(*_facts(path, provider)) as folder:
                return _session(path, threads, provider, provider.keeping(str(folder)))
        except (OSError, VqedgeError) as error:  # whatever it is, it may be what was kept
            logger.info("%s: tried again with nothing kept: %s", path, error)
    return _session(path, threads, provider, {})


def _facts(path: Path, provider: Provider) -> list[str]:
    """What a compiled encoder depends on."""
    versions = json.dumps(installed_versions())
    return [file_sha256(path), provider.name, versions, Cuda().identity, tf32_setting()]


def _session(
    path: Path, threads: int, provider: Provider, kept: dict[str, str]
) -> ort.InferenceSession:
    place, options = utf8_path(path), ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY if provider is _CPU else _NOTHING
    options.enable_mem_pattern = provider is not _CPU  # 70 MB from the second clip on, no faster
    options.add_session_config_entry(_STOP_SPINNING, "1")
    told = dict(provider.options) | kept
    others = [(row.name, dict(row.options)) for row in _chain(provider)[1:]]
    names: list[Any] | None = [(provider.name, told), *others]
    if provider is not _CPU:
        options.add_session_config_entry(_RECORD_NODES, "1")
    try:
        if provider.plugin:
            options.add_provider_for_devices(plugin_devices(provider)[:1], told)
            names = None
        session = ort.InferenceSession(place, options, providers=names, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a dozen private types here
        raise _refusal(path, provider, first_line(error)) from error
    if provider.name not in session.get_providers():
        raise _refusal(path, provider, "it gave the graph to the CPU")
    return session


def _chain(provider: Provider) -> list[Provider]:
    """A provider, and those that take what it cannot run."""
    offered = ort.get_available_providers()
    between = [PROVIDERS[label] for label in provider.then if PROVIDERS[label].name in offered]
    return [_CPU] if provider is _CPU else [provider, *between, _CPU]


def _elsewhere(session: ort.InferenceSession, provider: Provider) -> str:
    """How many nodes others than the provider run, in words for the name."""
    if provider is _CPU:
        return ""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before ONNX Runtime 1.24
        return ", may run parts elsewhere"
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    labels = {row.name: row.label for row in PROVIDERS.values()}
    others = ((labels.get(name, name), n) for name, n in nodes.items() if name != provider.name)
    return "".join(f", {n / nodes.total():.1%} of nodes on {label}" for label, n in others)


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any], name: str
) -> list[Any]:
    """What a graph gives for some of its outputs; nodes that only others need are left out.

    Raises:
        BundleError: ONNX Runtime fails.
    """
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    try:
        return list(session.run(outputs, feeds, options))
    except Exception as error:  # as in `open_session`
        reason = first_line(error)
        raise BundleError(f"{name}: ONNX Runtime failed ({reason}); export again") from error


def _refusal(path: Path, provider: Provider, reason: str) -> BundleError | BackendUnavailable:
    """On the CPU the file is at fault; elsewhere more likely a driver or a library."""
    if provider is _CPU or OP_NAME in reason:
        return refusal(path, "ONNX Runtime", reason)
    return BackendUnavailable(
        f"onnxruntime {provider.label} does not start on this machine ({reason}); "
        f"{advice(provider)}, or use --backend auto"
    )
