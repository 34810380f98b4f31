"""The encoder on OpenVINO: the ViT in the CPU's fastest type, the quantizer in float32.

One precision for the whole graph would not do: k-means in bfloat16 finds other ids. So the graph is
cut at the tensor `features` into two models. OpenVINO does not know functions inside of a model;
ONNX Runtime writes the graph without them. Both models are kept compiled in the cache: a start then
takes as long as one of ONNX Runtime's.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vqedge.cores import usable_cores
from vqedge.errors import BackendUnavailable, BundleError, first_line
from vqedge.files import file_sha256
from vqedge.temporary import temporary_folder
from vqedge_runtime.cache_folder import cache_folder
from vqedge_runtime.encoders.compiled import keep_file, kept
from vqedge_runtime.encoders.protocol import Frames, Text, inputs_for, refusal, utf8_path
from vqedge_runtime.encoders.silent_openvino import opset13, ov
from vqedge_runtime.tokens import Codes, code_outputs, codes_from_outputs

FEATURES = "features"
_DEVICE = "CPU"
_KEPT_FILES = 8  # of two models an encoder, about 100 MB together
_SHORT_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class OpenVinoEncoder:
    """Runs `encoder.onnx`.

    Args:
        path: the ONNX file of a verified bundle, in float32.
        threads: worker threads; the CPUs this process may use by default.

    Attributes:
        clip_shape: of the frames that the graph takes; -1 is a free dimension.

    Raises:
        BundleError: OpenVINO refuses the file.
        BackendUnavailable: there is no room for a copy of it among the temporary files.
        ConfigError: or no place for those.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
        }
        self._path = path
        try:
            vit, quantizer = _compiled(path, settings)
        except RuntimeError as error:
            raise _refusal(path, "OpenVINO", error) from error
        self.clip_shape = tuple(map(_length, vit.input("frames").partial_shape))
        kind = vit.get_property("INFERENCE_PRECISION_HINT").to_string()
        self._name = f"openvino {_DEVICE} {_SHORT_NAMES.get(kind, kind)}"
        names = {name for output in quantizer.outputs for name in output.get_names()}
        self._outputs = code_outputs(names)
        self._requests: tuple[Any, Any] | None = (
            vit.create_infer_request(),
            quantizer.create_infer_request(),
        )

    @property
    def name(self) -> str:
        """What runs where; the type is the ViT's."""
        return self._name

    def features(self, frames_thwc: Frames) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Patch features `[T * grid * grid, width]`, overwritten by the next call.

        Raises:
            BackendUnavailable: the encoder was closed.
            BundleError: the graph fails on these frames.
        """
        if self._requests is None:
            raise BackendUnavailable("the encoder is closed; open the bundle again")
        vit = self._requests[0]
        self._infer(vit, {"frames": frames_thwc})
        found: np.ndarray[Any, np.dtype[np.float32]] = vit.get_tensor(FEATURES).data
        return found

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        `text` is the question, of a bundle whose tokens follow it.

        Raises:
            BackendUnavailable: the encoder was closed.
            BundleError: the graph fails on these frames.
        """
        feeds = inputs_for(frames_thwc, budget, text)
        feeds[FEATURES] = self.features(feeds.pop("frames"))
        assert self._requests
        quantizer = self._requests[1]
        self._infer(quantizer, feeds)
        outputs = {name: quantizer.get_tensor(name).data.copy() for name in self._outputs}
        return codes_from_outputs(outputs | {"mask": outputs["mask"].astype(bool)})

    def _infer(self, request: Any, feeds: dict[str, Any]) -> None:
        try:
            request.infer(feeds)
        except RuntimeError as error:
            raise _refusal(self._path, "OpenVINO", error) from error

    def close(self) -> None:
        """Free both models; twice is fine."""
        self._requests = None


def _compiled(path: Path, settings: dict[str, Any]) -> tuple[ov.CompiledModel, ov.CompiledModel]:
    """ViT and quantizer, from the cache if they are there."""
    core = ov.Core()
    files = _cached_files(core, path)
    exact = settings | {"INFERENCE_PRECISION_HINT": "f32"}  # a compiled model forgets its type
    halves = [kept(file) for file in files]
    if halves and None not in halves:
        with suppress(RuntimeError):  # of another build: made anew
            vit = core.import_model(halves[0], _DEVICE, settings)
            return vit, core.import_model(halves[1], _DEVICE, exact)
    models = _halves(core, path)
    vit = core.compile_model(models[0], _DEVICE, settings)
    quantizer = core.compile_model(models[1], _DEVICE, exact)
    for file, model in zip(files, (vit, quantizer), strict=False):
        keep_file(file, model.export_model().getvalue(), _KEPT_FILES)
    return vit, quantizer


def _halves(core: ov.Core, path: Path) -> tuple[ov.Model, ov.Model]:
    """The graph in two: frames to features, and features to codes."""
    with temporary_folder() as folder:
        whole = core.read_model(_without_functions(path, folder / path.name))
        inputs = {item.output(0).get_any_name(): item for item in whole.get_parameters()}
        if "frames" not in inputs:
            raise BundleError(f"{path}: no input 'frames' in the graph; export again")
        features = _features_of(whole, path)
        readers = list(features.get_target_inputs())
        entry = opset13.parameter(features.get_partial_shape(), features.get_element_type())
        entry.output(0).set_names({FEATURES})
        vit = ov.Model([features], [inputs["frames"]], "vit")
        for reader in readers:
            reader.replace_source_output(entry.output(0))
        asked = [inputs[name] for name in inputs if name != "frames"]
        return vit, ov.Model(whole.get_results(), [entry, *asked], "quantizer")


def _without_functions(path: Path, out: Path) -> Path:
    place, options = utf8_path(path), ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = utf8_path(out)
    options.log_severity_level = 3
    try:
        ort.InferenceSession(place, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen private types here
        if out.exists():  # it was read
            raise _no_room(path, out.parent, error) from error
        raise _refusal(path, "ONNX Runtime", error) from error
    return out


def _no_room(path: Path, folder: Path, error: Exception) -> BackendUnavailable:
    """Why ONNX Runtime ended while it wrote its copy."""
    size = path.stat().st_size
    return BackendUnavailable(
        f"{folder}: a copy of {path.name}, {size / 1e6:.0f} MB, cannot be written "
        f"({first_line(error)}); set TMPDIR to a folder on a disk with room"
    )


def _refusal(path: Path, reader: str, error: Exception) -> BundleError | BackendUnavailable:
    return refusal(path, reader, first_line(error))


def _length(dimension: Any) -> int:
    return int(dimension.get_length()) if dimension.is_static else -1


def _features_of(model: ov.Model, path: Path) -> Any:
    for node in model.get_ops():
        for output in node.outputs():
            if FEATURES in output.get_names():
                return output
    raise BundleError(f"{path}: no tensor {FEATURES!r} in the graph; export again")


def _cached_files(core: ov.Core, path: Path) -> list[Path]:
    """Where the two are kept; nowhere if there is no cache folder."""
    try:
        folder = cache_folder() / "openvino"
    except OSError:
        return []
    processor = core.get_property(_DEVICE, "FULL_DEVICE_NAME")
    known = f"{file_sha256(path)} {ov.get_version()} {ort.__version__} {processor}"
    key = hashlib.sha256(known.encode()).hexdigest()[:32]
    return [folder / f"{key}.vit.blob", folder / f"{key}.quantizer.blob"]
