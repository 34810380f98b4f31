"""`vqedge inspect`: what a bundle, a checkpoint, or a file of a kind that vqedge knows holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vqedge.bundle import EngineRecord, open_bundle
from vqedge.bundle.manifest import MANIFEST_NAME
from vqedge.commands.output import json_result, result
from vqedge.errors import BundleError, CheckpointError, VqedgeError, first_line
from vqedge.json_text import without_repeats
from vqedge.packages import pip_command
from vqedge_runtime.vqt import Segment, is_vqt, open_vqt
from vqedge_runtime.vqt.file import SUFFIX, vqt_errors

_SHORT = 100  # longest value shown in full


def run_inspect(path: Path, *, as_json: bool = False) -> None:
    """Print the facts of a file or folder.

    Raises:
        VqedgeError: as `facts_of`, or they are nested too deeply to be told.
    """
    kind, facts = facts_of(path)
    document = {"path": str(path), "kind": kind, **facts}
    try:
        if as_json:
            json_result(document)
        else:
            result(json.dumps(document, indent=2))
    except RecursionError:  # what can just be read cannot always be told
        raise BundleError(f"{path}: nested too deeply; make it again or copy it again") from None


def facts_of(path: Path) -> tuple[str, dict[str, Any]]:
    """What kind of thing a path is, and its facts.

    Raises:
        BundleError: nothing there, or nothing that vqedge knows.
        CheckpointError: a checkpoint or its weights cannot be read.
    """
    if not path.exists():
        raise BundleError(f"{path}: no such file or folder; check the path")
    if (path / MANIFEST_NAME).is_file():
        return "bundle", _bundle_facts(path)
    if (path / "config.json").is_file():
        return "checkpoint", _checkpoint_facts(path)
    suffix = SUFFIX if is_vqt(path) else path.suffix.lower()
    if suffix in _FILES and path.is_file():
        return suffix[1:], _FILES[suffix](path)
    known = ", ".join(_FILES)
    raise BundleError(f"{path}: not a bundle, a checkpoint, or a file that ends in {known}")


def _bundle_facts(path: Path) -> dict[str, Any]:
    bundle = open_bundle(path)
    facts: dict[str, Any] = bundle.manifest.model_dump(mode="json")
    parity = path / "parity.json"
    return facts | {"parity": _json_of(parity, BundleError) if parity.is_file() else None}


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    names = ("config.json", "metrics.json")
    facts = {
        name.removesuffix(".json"): _json_of(path / name, CheckpointError)
        for name in names
        if (path / name).is_file()
    }
    # without those of a training that writes here: its lock, and what it has half-written
    files = (item for item in sorted(path.iterdir()) if not item.name.startswith("."))
    sizes = {item.name: item.stat().st_size for item in files if item.is_file()}
    return facts | {"files": sizes}


def _json_of(path: Path, fault: type[VqedgeError]) -> Any:
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise fault(f"{path}: not JSON ({error}); make it again or copy it again") from error


def _onnx_facts(path: Path) -> dict[str, Any]:
    """Facts of the file alone: its weights and operators may be elsewhere."""
    try:
        import onnx
    except ImportError:  # no need of a device
        return _session_facts(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's own
        raise BundleError(f"{path}: not a readable ONNX file ({first_line(error)})") from error
    if not model.HasField("graph"):
        raise BundleError(f"{path}: not a readable ONNX file (no graph)")
    graph, external = model.graph, onnx.TensorProto.EXTERNAL
    operators = Counter("::".join(filter(None, (n.domain, n.op_type))) for n in graph.node)
    return {
        "inputs": [_onnx_value(value) for value in graph.input],
        "outputs": [_onnx_value(value) for value in graph.output],
        "opsets": {item.domain or "ai.onnx": item.version for item in model.opset_import},
        "operators": dict(operators.most_common()),
        "weights": len(graph.initializer),
        "weights_elsewhere": sum(item.data_location == external for item in graph.initializer),
    }


def _onnx_value(value: Any) -> dict[str, Any]:
    """As ONNX Runtime tells it: a size, the name of one, or None for each dimension."""
    import onnx

    tensor = value.type.tensor_type
    shape = [
        item.dim_value if item.HasField("dim_value") else item.dim_param or None
        for item in tensor.shape.dim
    ]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "type": f"tensor({kind})", "shape": shape}


def _session_facts(path: Path) -> dict[str, Any]:
    import onnxruntime as ort

    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(
            f"{path}: ONNX Runtime cannot load it ({first_line(error)}); "
            f"install onnx to look into it: {pip_command()} install onnx"
        ) from error
    return {
        side: [{"name": t.name, "type": t.type, "shape": t.shape} for t in tensors]
        for side, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
    }


def _safetensors_facts(path: Path) -> dict[str, Any]:
    from vqedge.base.tensors import TensorFile

    file = TensorFile(path)
    tensors = [
        {"name": name, "type": file.dtype(name), "shape": list(file.shape(name))} for name in file
    ]
    return {"tensors": tensors}


def _gguf_facts(path: Path) -> dict[str, Any]:
    from vqedge.gguf_head import check_head
    from vqedge.model.gguf_reading import PlainReader

    try:
        check_head(path)
        reader = PlainReader(path)
        fields = {name: _short(field.contents()) for name, field in reader.fields.items()}
    except OSError:
        raise
    except Exception as error:  # of a damaged file it raises what its arrays happen to
        raise BundleError(
            f"{path}: not a readable GGUF file ({type(error).__name__}: {error})"
        ) from error
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    return {"metadata": fields, "tensors": len(reader.tensors), "tensor_types": types}


def _vqt_facts(path: Path) -> dict[str, Any]:
    """Header and segments; every one of them is read, so that damage inside shows."""
    file = open_vqt(path)
    header = {"version": file.header.version, **asdict(file.header)}
    origin = header.pop("origin")
    with vqt_errors(path):
        segments = [_segment_facts(file.segment(number)) for number in range(len(file.spans_us))]
    return {"size_bytes": file.size_bytes, "origin": origin, "header": header, "segments": segments}


def _segment_facts(segment: Segment) -> dict[str, Any]:
    return {
        "start_s": segment.start_us / 1e6,
        "duration_s": segment.duration_us / 1e6,
        "times_s": [time_us / 1e6 for time_us in segment.times_us],
        "tokens": segment.codes.count,
    }


def _engine_facts(path: Path) -> dict[str, Any]:
    """From the manifest or the note beside it: only its own TensorRT and GPU can read an engine."""
    record = _engine_record(path)
    if record is None:
        raise BundleError(
            f"{path}: an engine tells nothing without its record; "
            "inspect it where it lies in a bundle or in the cache"
        )
    return {"engine": record.model_dump(mode="json"), "size_bytes": path.stat().st_size}


def _engine_record(path: Path) -> EngineRecord | None:
    from vqedge.engines import engine_from_note

    for root in path.absolute().parents[:2]:
        if (root / MANIFEST_NAME).is_file():
            bundle = open_bundle(root)
            name = path.absolute().relative_to(root).as_posix()
            return next((item for item in bundle.manifest.engines if item.file == name), None)
    return engine_from_note(path)


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return f"{len(value)} values"
    if isinstance(value, str) and len(value) > _SHORT:
        return value[:_SHORT] + "..."
    return value


_FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".onnx": _onnx_facts,
    ".gguf": _gguf_facts,
    ".safetensors": _safetensors_facts,
    SUFFIX: _vqt_facts,
    ".engine": _engine_facts,
}
