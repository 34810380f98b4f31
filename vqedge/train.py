"""Train the bridge and the adapter of the language model on quantised clips.

Everything frozen is done once (`vqedge.training.clips`), so a step is only the bridge and the
language model; and what makes the codes, if that is trained: a reducer with weights, or the last
blocks of the backbone, for which features are kept instead of codes. A run is a pure function of
its configuration: clips, budgets and questions derive from (seed, step), so that a killed run
resumes at its last save and goes on exactly as if it had not been killed: on a CPU, and by
PyTorch's source on a GPU, too (`vqedge.training.processes.repeatable_kernels`; not run on one).
`accelerate launch --multi_gpu -m vqedge train ...` runs it on several GPUs; `--use_fsdp
--fsdp_version 2` in place of `--multi_gpu` spreads the frozen language model over them.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate import Accelerator

from vqedge.data.clips import ClipSource
from vqedge.data.sources import FrameReader
from vqedge.model.checkpoint import Checkpoint, clip_quantizer
from vqedge.progress import Clock, tell
from vqedge.recipe import TrainConfig
from vqedge.training.clips import refuse_unreadable, training_clips
from vqedge.training.folder import RunFolder
from vqedge.training.inputs import long_answers, refuse_faults, shared_videos, sources_of
from vqedge.training.processes import accelerator_for, told_of
from vqedge.training.run import Run, compiles, tokenizer_of


def train(
    config: TrainConfig, read: FrameReader, resume: bool = False, clock: Clock | None = None
) -> Checkpoint | None:
    """Train to the configured number of steps and write a checkpoint.

    Args:
        config: the run.
        read: how video files are decoded.
        resume: go on from the last save in `config.output`, or begin if there is none.
        clock: when its time is up, save and stop; `resume` goes on.

    Returns:
        The checkpoint, or None if time ran out.

    Raises:
        CheckpointError: the output folder cannot be written to, another run writes there, it holds
            another run or a finished checkpoint, or `config.init` does not fit.
        ConfigError: a launcher's processes cannot share a step, it asks for more than is done, or
            `optim.compile` for what is not installed.
        DatasetError: a source is missing or malformed.
        FetchError: base weights are not there and cannot be downloaded.
    """
    clock = clock or Clock()
    folder = RunFolder(config)
    folder.refuse_unwritable()
    folder.refuse_checkpoint()
    if not resume:
        folder.refuse_old_run()
    accelerator = accelerator_for(config)
    shown, kept_back = (sources_of(part, read) for part in (config.data.sources, config.validation))
    refuse_faults(config, (*shown, *kept_back), begins=not (resume and folder.begun()))
    with folder.alone() if accelerator.is_main_process else nullcontext():
        return _trained(config, folder, (shown, kept_back), resume, clock, accelerator)


def _trained(
    config: TrainConfig,
    folder: RunFolder,
    inputs: tuple[tuple[ClipSource, ...], tuple[ClipSource, ...]],
    resume: bool,
    clock: Clock,
    accelerator: Accelerator,
) -> Checkpoint | None:
    """As `train`, in a folder that no other run writes to."""
    if not resume:
        folder.refuse_old_run()  # one that has ended since
    shown, kept_back = inputs
    compiled, tokenizer = compiles(config, accelerator.device), tokenizer_of(config)
    every = (*shown, *kept_back)
    if accelerator.is_main_process:
        tell(told_of(config, accelerator, compiled))
        for line in (*shared_videos(shown, kept_back), *long_answers(every, tokenizer)):
            tell(line, always=True)
    refuse_unreadable(config, every, accelerator, clock)
    quantizer = clip_quantizer(config.model, config.base).to(accelerator.device)
    clips = training_clips(config, config.data.sources, shown, quantizer, accelerator, clock)
    if clips is None:
        return None
    held_out = training_clips(config, config.validation, kept_back, quantizer, accelerator, clock)
    if held_out is None:
        return None
    torch.manual_seed(config.seed)  # here: encoding clips draws numbers, and may have been done
    run = Run(config, folder, tokenizer, clips, held_out, quantizer.vit, accelerator, compiled)
    del quantizer
    return run.to_the_end(resume, clock)
