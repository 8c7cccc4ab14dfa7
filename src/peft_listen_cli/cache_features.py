"""`peft-listen cache-features`: runs a model's audio encoders on all clips of data files and stores their outputs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .argument_types import DTYPES, positive_integer


if TYPE_CHECKING:
    from peft_listen import AudioListenForCausalLM, AudioListenProcessor
    from peft_listen.data import Example


HELP = "Run a model's audio encoders on all clips of data files once, and store the features for training."
# After Ctrl-C, the same command takes up what it has done.
CONTINUES = True
EPILOG = """\
The encoders are frozen, so training can read their outputs instead of running them:

  peft-listen cache-features train.jsonl --model my-base --folder features

  cache = FeatureCache("features", model)
  collator = AudioListenCollator(processor, feature_cache=cache)

If the command is interrupted, run it again: it continues where it stopped. Clips that are in the cache already are
skipped, without decoding their files if these have not changed. With several processes, each encodes a part of the
clips; for example on four GPUs, or in four processes on CPUs:

  accelerate launch --num_processes 4 -m peft_listen_cli cache-features train.jsonl --model my-base --folder features
  torchrun --nproc_per_node 4 -m peft_listen_cli cache-features train.jsonl --model my-base --folder features

The exit code is 0 if all clips are in the cache, and 2 after an error, such as a clip that cannot be read. To list all
such clips, run `peft-listen data check` first; with --on-bad-clip skip, their rows are left out and counted. The
launchers exit with 1 if a process fails.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", nargs="+", metavar="DATA", help="data file (JSON lines with audio, instruction, ...)")
    parser.add_argument(
        "--model",
        required=True,
        metavar="BASE",
        help="folder or Hub name of the base model, or of an adapter, whose base model is used",
    )
    parser.add_argument(
        "--folder",
        required=True,
        metavar="DIR",
        help="folder of the cache, for FeatureCache; created if it is missing",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=8,
        metavar="N",
        help="clips that are encoded at once (default: 8)",
    )
    parser.add_argument(
        "--shard-size",
        type=positive_integer,
        default=128,
        metavar="N",
        help="clips per file of the cache (default: 128)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="dtype of the encoders. Load the model in the same dtype for training, since each dtype has its own features "
        "(default: auto, that of the checkpoint, as in from_pretrained)",
    )
    parser.add_argument(
        "--on-bad-clip",
        choices=["error", "skip"],
        default="error",
        help="a row whose clip is missing, damaged, empty or too long ends the command, or is left out and counted (default: "
        "error)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.data import clips_of, read_examples

    # The data files are read first, since loading the model may take minutes.
    examples = [example for path in arguments.data for example in read_examples(path)]
    clips = list(dict.fromkeys(clips_of(examples)))
    if not clips:
        raise ValueError(
            f"{', '.join(arguments.data)}: no example has audio, so there is nothing to encode. Pass data files whose "
            "`audio` fields name clips."
        )

    from peft_listen.training import FeatureCache

    from .processes import start_processes

    state = start_processes()
    num_skipped = 0
    if arguments.on_bad_clip == "skip":
        clips, num_skipped = _good_clips(examples, arguments)
    model, processor = _load_encoders(arguments.model, arguments.dtype)
    cache = FeatureCache(arguments.folder, model.to(state.device))
    before = len(cache)
    cache.build(model, processor, clips, batch_size=arguments.batch_size, shard_size=arguments.shard_size)
    if state.is_main_process:
        num_new = len(cache) - before
        if arguments.json:
            counts = {"num_clips": len(clips), "num_new": num_new, "num_skipped": num_skipped}
            print(json.dumps({"folder": str(cache.folder), **counts}))
        else:
            skipped = f"; {num_skipped} rows skipped" if num_skipped else ""
            print(
                f"{cache.folder}: {len(clips)} clips of the data are in the cache, {num_new} of them are new{skipped}"
            )
    state.destroy_process_group()
    return 0


def _good_clips(examples: Sequence[Example], arguments: argparse.Namespace) -> tuple[list[str], int]:
    """The clips of the rows that can be loaded, and the number of the other rows."""
    from peft_listen.data import clips_of
    from peft_listen.data.bad_clips import without_bad_clips
    from peft_listen.training.feature_cache import find_uncacheable

    problems = find_uncacheable(examples, arguments.folder)
    kept = without_bad_clips(examples, problems, ", ".join(arguments.data))
    return list(dict.fromkeys(clips_of(kept))), len(problems)


def _load_encoders(name: str, dtype: str) -> tuple[AudioListenForCausalLM, AudioListenProcessor]:
    """Loads a base model, or that of an adapter, without keeping its language model, and its processor."""
    from torch import nn

    from peft_listen import AudioListenConfig, AudioListenForCausalLM, AudioListenProcessor
    from peft_listen.models.audio_listen.frozen_references import resolve_adapter
    from peft_listen.pipelines.loading import check_model_name

    check_model_name(name)
    try:
        base, _ = resolve_adapter(name, {})
        AudioListenConfig.from_pretrained(base)  # explains what is wrong with a model of another kind
        processor = AudioListenProcessor.from_pretrained(base)
        model = AudioListenForCausalLM.from_pretrained(base, dtype=dtype)
    except OSError as error:
        raise OSError(f"The model {name!r} cannot be loaded. {error}") from error
    # Only the encoders run, so the language model need not be moved to the device.
    model.model.language_model = nn.Identity()
    model.lm_head = nn.Identity()
    return model, processor
