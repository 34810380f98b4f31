"""The one adapter over tensorrt 10.3 to 11.x and tensorrt_rtx: what differs between them is here.

Imported in the building process only: a TensorRT that crashes takes no more than that with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vqedge.cuda import Cuda
from vqedge.engines import Flavour, version_of
from vqedge.errors import BackendUnavailable
from vqedge_export.tensorrt.options import BuildOptions, Offer


@dataclass(frozen=True)
class Library:
    """A loaded TensorRT."""

    trt: Any
    flavour: Flavour

    @property
    def version(self) -> str:
        """As it says it."""
        return str(self.trt.__version__)

    def offer(self) -> Offer:
        """What it can do on this machine."""
        return Offer(
            flavour=self.flavour,
            version=self.version,
            compute_capability=_this_gpu(),
            capabilities=self._cross_capabilities(),
            weak_typing=hasattr(self.trt.BuilderFlag, "FP16"),
        )

    def network(self, builder: Any, options: BuildOptions) -> Any:
        """An empty network, typed as asked."""
        kinds = self.trt.NetworkDefinitionCreationFlag
        strong = options.typing == "strong" and hasattr(kinds, "STRONGLY_TYPED")
        return builder.create_network(1 << int(kinds.STRONGLY_TYPED) if strong else 0)

    def configure(self, config: Any, options: BuildOptions, capabilities: Sequence[str]) -> None:
        """Set everything that a version knows how to be told; the rest was refused before."""
        trt = self.trt
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; float32 decides ids, in full
        config.builder_optimization_level = options.optimization_level
        if options.workspace_mb is not None:
            limit = options.workspace_mb << 20
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.typing == "weak":
            self._flag_precision(config, options)
        if self.flavour == "tensorrt-rtx":
            self._set_capabilities(config, capabilities)

    @property
    def measures_kernels(self) -> bool:
        """TensorRT proper times kernels on the GPU; RTX builds without one."""
        return self.flavour == "tensorrt"

    def load_plugin(self, path: str) -> None:
        """Register the creators of a plugin library.

        Raises:
            BackendUnavailable: TensorRT refuses the library.
        """
        if self.trt.get_plugin_registry().load_library(path) is None:
            raise BackendUnavailable(
                f"{path}: TensorRT {self.version} cannot load this plugin library; "
                "build it again against the installed TensorRT"
            )

    def _flag_precision(self, config: Any, options: BuildOptions) -> None:
        flags = self.trt.BuilderFlag
        if options.precision != "fp32":
            config.set_flag(flags.FP16)
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)

    def _set_capabilities(self, config: Any, capabilities: Sequence[str]) -> None:
        config.num_compute_capabilities = len(capabilities)
        for place, capability in enumerate(capabilities):
            name = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(getattr(self.trt.ComputeCapability, name), place)

    def _cross_capabilities(self) -> tuple[str, ...]:
        if self.flavour == "tensorrt":
            return ()
        names = [name for name in dir(self.trt.ComputeCapability) if name[:2] == "SM"]
        return tuple(sorted((f"{name[2:-1]}.{name[-1]}" for name in names), key=version_of))


def _this_gpu() -> str | None:
    with suppress(BackendUnavailable):
        return Cuda().compute_capability
    return None
