"""The building process: `python -m vqedge_export.tensorrt.worker JOB.json OUTCOME.json`.

TensorRT is native code that may abort, or take all memory. Here it can: whoever started this
process reads the signal it died of and says so in one line.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from vqedge.bundle import ProfileRecord, TensorRecord
from vqedge.errors import BackendUnavailable, ExportError, VqedgeError
from vqedge.files import replacing
from vqedge.tensorrt import log_of, made, one_line, tensorrt_module
from vqedge_export.layers import VIT
from vqedge_export.tensorrt.job import Job, Outcome
from vqedge_export.tensorrt.library import Library
from vqedge_export.tensorrt.options import require_possible

logger = logging.getLogger(__name__)

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


def main() -> int:
    """Do the job of one file, write the outcome to the other."""
    job_path, outcome_path = map(Path, sys.argv[1:])
    job = Job.model_validate_json(job_path.read_text(encoding="utf-8"))
    level = logging.INFO if job.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    try:
        outcome = outcome_of(job, Library(tensorrt_module(job.flavour), job.flavour))
    except VqedgeError as error:
        missing = isinstance(error, BackendUnavailable)
        outcome = Outcome(fault=str(error), unavailable=missing)
    except Exception as error:  # whatever a library raises is told as one line, too
        logger.info("the building process failed", exc_info=True)
        cause = one_line([f"{type(error).__name__}: {error}"])
        outcome = Outcome(fault=f"{job.flavour}: {cause}; --verbose tells where")
    with replacing(outcome_path) as temporary:
        temporary.write_text(outcome.model_dump_json(), encoding="utf-8")
    return 0


def outcome_of(job: Job, library: Library) -> Outcome:
    """Build what the job asks for.

    Raises:
        ExportError: TensorRT cannot build it.
        BackendUnavailable: TensorRT cannot start, or not load the plugin library.
    """
    offer = library.offer()
    if job.onnx is None or job.engine is None:
        return Outcome(offer=offer)
    require_possible(job.options, offer, job.plugin is not None)
    began = time.perf_counter()
    log = log_of(library.trt)
    if job.plugin is not None:
        library.load_plugin(str(job.plugin))
    builder = made(library.trt.Builder, log)
    network = _network_from_onnx(library, builder, job.onnx, job, log)
    inputs, outputs = _tensors_of(network)
    _require_contract(job, inputs, outputs)
    config = _config_of(library, builder, network, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT built no engine: {log.last_words()}")
    job.engine.write_bytes(plan)
    _keep_timings(library, config, job)
    seconds = time.perf_counter() - began
    return Outcome(offer=offer, inputs=inputs, outputs=outputs, seconds=seconds)


def _network_from_onnx(library: Library, builder: Any, onnx: Path, job: Job, log: Any) -> Any:
    network = library.network(builder, job.options)
    parser = library.trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        faults = [parser.get_error(place).desc() for place in range(parser.num_errors)]
        raise ExportError(f"TensorRT cannot read the encoder: {one_line(faults)}")
    if job.options.typing == "weak":
        _pin_quantizer(library, network)
    return network


def _pin_quantizer(library: Library, network: Any) -> None:
    """Keep float32 behind the ViT where TensorRT picks types: its choice would turn ids.

    A layer's precision is what it computes in; what it hands on has a type of its own. Stored
    weights are layers, too, under names of their own, the ViT's among them: they are left alone.
    """
    full, stored = library.trt.DataType.FLOAT, library.trt.LayerType.CONSTANT
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        made = [layer.get_output(number).dtype for number in range(layer.num_outputs)]
        compares = set(made) == {library.trt.DataType.BOOL} and full in _read_types(layer)
        free = layer.type == stored or layer.name.startswith(VIT)
        if free or not (full in made or compares):
            continue
        layer.precision = full
        for number, kind in enumerate(made):
            if kind == full:
                layer.set_output_type(number, full)


def _read_types(layer: Any) -> set[Any]:
    tensors = (layer.get_input(number) for number in range(layer.num_inputs))
    return {tensor.dtype for tensor in tensors if tensor is not None}


def _tensors_of(network: Any) -> tuple[tuple[TensorRecord, ...], tuple[TensorRecord, ...]]:
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    outputs = [network.get_output(place) for place in range(network.num_outputs)]
    return tuple(map(_tensor, inputs)), tuple(map(_tensor, outputs))


def _tensor(tensor: Any) -> TensorRecord:
    dtype = _DTYPES.get(tensor.dtype.name, "unknown")
    shape = tuple("free" if size < 0 else int(size) for size in tensor.shape)
    return TensorRecord.model_validate({"name": tensor.name, "dtype": dtype, "shape": shape})


def _require_contract(
    job: Job, inputs: tuple[TensorRecord, ...], outputs: tuple[TensorRecord, ...]
) -> None:
    """TensorRT's inputs and outputs are the manifest's, in name, type and shape."""
    for wanted, found in ((job.inputs, inputs), (job.outputs, outputs)):
        missing = {_spelled(item) for item in wanted} ^ {_spelled(item) for item in found}
        if missing:
            raise ExportError(
                f"TensorRT and the manifest disagree about {', '.join(sorted(missing))}; "
                "export the checkpoint again"
            )


def _spelled(tensor: TensorRecord) -> str:
    shape = ", ".join("free" if isinstance(size, str) else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.dtype} [{shape}]"


def _config_of(library: Library, builder: Any, network: Any, job: Job) -> Any:
    config = builder.create_builder_config()
    library.configure(config, job.options, job.capabilities)
    if job.plugin is not None and job.options.version_compatible:
        config.plugins_to_serialize = [str(job.plugin)]  # TensorRT takes it in such engines only
    _set_profile(builder, network, config, job)
    if library.measures_kernels and job.timing_cache is not None:
        known = job.timing_cache.read_bytes() if job.timing_cache.is_file() else b""
        cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU of this kind
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


def _set_profile(builder: Any, network: Any, config: Any, job: Job) -> None:
    """Ranges of inputs with free dimensions."""
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    if shaping := [item.name for item in inputs if item.is_shape_tensor]:
        raise ExportError(
            f"TensorRT takes {', '.join(shaping)} as a shape: shapes would change from run to run, "
            "and vqedge runs engines whose shapes are fixed; export the checkpoint again"
        )
    free = [item for item in inputs if min(item.shape, default=0) < 0]
    if not free:
        return
    profile = builder.create_optimization_profile()
    ranges = {item.input: item for item in job.profiles}
    for item in free:
        profile.set_shape(item.name, *_range_of(ranges, item.name))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError("TensorRT refuses the optimisation profile; export the checkpoint again")


def _range_of(ranges: dict[str, ProfileRecord], name: str) -> tuple[Any, Any, Any]:
    if name not in ranges:
        raise ExportError(f"the input {name} has a free dimension and the manifest gives no range")
    return ranges[name].min, ranges[name].opt, ranges[name].max


def _keep_timings(library: Library, config: Any, job: Job) -> None:
    cache = config.get_timing_cache() if library.measures_kernels else None
    if cache is None or job.timing_cache is None:
        return
    job.timing_cache.parent.mkdir(parents=True, exist_ok=True)
    with replacing(job.timing_cache) as temporary:
        temporary.write_bytes(cache.serialize())


if __name__ == "__main__":
    sys.exit(main())
