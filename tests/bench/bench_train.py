"""A training step with compiled blocks of the language model and as PyTorch runs it.

    python tests/bench/bench_train.py [--steps 16] [OVERRIDE ...]

`vqedge train` twice, on 64 generated clips and from scratch; overrides as it takes them
(`precision=bf16 optim.clips_per_step=16`). One JSON document: the median seconds of a step, the
first step (which compiles, unless an earlier run left the kernels), the ratio, and the last loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vqedge.cores import processor_name, usable_cores
from vqedge.training.folder import LOG

VQEDGE = Path(sys.executable).with_name("vqedge")
SETTLED = 4  # the first steps compile, and meet shapes for the first time
RECIPE = """
data: {sources: [{kind: world, seed: 1, clips: 64}], budgets: [32]}
optim: {naming_steps: 0, clips_per_step: 8}
validation: [{kind: world, seed: 2, clips: 2}]
"""


def measure(folder: Path, compiled: bool, steps: int, overrides: list[str]) -> dict[str, Any]:
    """One run of `vqedge train`."""
    recipe, output = folder / "recipe.yaml", folder / str(compiled)
    recipe.write_text(RECIPE, encoding="utf-8")
    settings = [f"optim.compile={compiled}", f"optim.steps={steps}", f"save_every={steps}"]
    command = [VQEDGE, "train", recipe, "-o", output, *settings, *overrides]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (output / LOG).read_text(encoding="utf-8").splitlines()]
    seconds = [line["seconds"] for line in lines if line["step"]]
    return {
        "step_s": round(statistics.median(seconds[SETTLED:]), 3),
        "first_step_s": seconds[0],
        "last_loss": lines[-1]["loss"],
    }


def main() -> None:
    """Both, and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        plain, compiled = (
            measure(Path(folder), compiled, arguments.steps, arguments.overrides)
            for compiled in (False, True)
        )
    print(
        json.dumps(
            {
                "machine": f"{processor_name()}, {usable_cores()} cores",
                "torch": version("torch"),
                "overrides": arguments.overrides,
                "plain": plain,
                "compiled": compiled,
                "ratio": round(plain["step_s"] / compiled["step_s"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
