"""Generates the demo's dataset: short WAV files of speech and sounds, each with an instruction and an answer.

    python -m demo.make_dataset OUTPUT_DIR

There are four tasks, in which all classes are equally frequent (to within one clip):

- "keyword": which of four animals is named in a sentence;
- "speaker": whether a man or a woman speaks a sentence;
- "emotion": whether a sentence is spoken calmly, happily, sadly or angrily (pitch, pitch range, rate and loudness);
- "sound": which of four everyday sounds it is.

Train, validation and test are separated as follows:

- voices: no voice occurs in two splits (American and British English occur in all of them); pitch and formants of those
  of the training split are changed at random, so that it has more of them;
- sentences: no carrier phrase of the animals, and no subject or predicate of the other sentences, occurs in two splits;
- sounds: the parameters of each sound are drawn from the same ranges in all splits, so no two clips are identical;
- the animals, the settings of the emotions and the wordings of the instructions are the same in all splits: a model
  learns these answers and is tested on new voices and new sentences.

Only voices of eSpeak NG that a small speech recognizer understands are used. A clip lasts 1 to 3 s.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline import sound_synthesis, speech_synthesis
from offline.dataset_folder import SAMPLING_RATE, SPLITS, balanced, describe_request, write_dataset
from offline.sound_synthesis import SOUND_CLASSES
from offline.speech_synthesis import EspeakSynthesizer


DURATION_LIMITS = (1.0, 3.0)  # seconds

INSTRUCTIONS = {
    "keyword": [
        "Which animal is named: cat, horse, tiger or elephant?",
        "Which animal does the speaker mention: cat, horse, tiger or elephant?",
        "Is the sentence about a cat, horse, tiger or elephant?",
        "Name the animal: cat, horse, tiger or elephant?",
    ],
    "speaker": [
        "Is the speaker a man or a woman?",
        "Who is speaking, a man or a woman?",
        "Does a man or a woman speak?",
        "Tell me if this is the voice of a man or a woman.",
    ],
    "emotion": [
        "How does the speaker feel: calm, happy, sad or angry?",
        "Is the speaker calm, happy, sad or angry?",
        "Which emotion is in the voice: calm, happy, sad or angry?",
        "Does this sound calm, happy, sad or angry?",
    ],
    "sound": [
        "What do you hear: a siren, a bell, rain or birds?",
        "What makes this sound: a siren, a bell, rain or birds?",
        "Name the sound: a siren, a bell, rain or birds?",
        "Is this a siren, a bell, rain or birds?",
    ],
}
TASKS = tuple(INSTRUCTIONS)

VOICES = {
    "train": {
        "woman": ["Alicia", "Andrea", "Annie", "f1", "f2", "f3", "f4", "shelby", "steph"],
        "man": ["Diogo", "Henrique", "Hugo", "Michael", "john", "m1", "m2", "m3", "m6", "max", "robert", "sandro"],
    },
    "validation": {"woman": ["anika", "aunty"], "man": ["Mike", "m7"]},
    "test": {"woman": ["f5", "linda"], "man": ["m5", "m8"]},
}

ANIMALS = ["cat", "horse", "tiger", "elephant"]
SOUNDS = ["a siren", "a bell", "rain", "birds"]
CARRIERS = {
    "train": [
        "Look at the {} over there.",
        "I can see the {} now.",
        "Where is the {} today?",
        "The {} is sleeping.",
        "Here comes the {} again.",
        "My brother likes the {}.",
        "Suddenly the {} ran away.",
        "Please feed the {}.",
        "We took a picture of the {}.",
        "Have you seen the {}?",
        "She drew a {} for me.",
        "That {} is very old.",
        "They called the {} twice.",
        "Every {} needs water.",
        "Once a {} came here.",
        "He told us about a {}.",
        "What does the {} eat?",
        "The big {} was tired.",
        "You can hear a {} outside.",
        "Our {} stayed at home.",
        "Is that really a {}?",
        "Keep away from the {}.",
        "A {} crossed the road.",
        "The children saw a {}.",
    ],
    "validation": ["This is the {} of my sister.", "Did you hear the {}?"],
    "test": ["There goes the {} with its friend.", "I think the {} is hungry.", "Nobody remembers the {}."],
}
SUBJECTS = {
    "train": ["The teacher", "My neighbour", "Our doctor", "The student", "My cousin", "The farmer", "Her uncle"],
    "validation": ["The painter", "Our guest"],
    "test": ["The baker", "My father", "Their daughter"],
}
PREDICATES = {
    "train": [
        "is on the bus",
        "leaves at seven",
        "came home early",
        "lives nearby",
        "called me twice",
        "works in the city",
        "is making dinner",
        "forgot the keys",
    ],
    "validation": ["opened the window", "is on the phone"],
    "test": ["went to the shop", "lost a coat", "is reading"],
}

# Ranges of the settings of speech_synthesis.EspeakSynthesizer.speak, by emotion.
EMOTIONS = {
    "calm": {"rate": (140, 155), "pitch": (40, 50), "pitch_range": (15, 30), "volume": (55, 75)},
    "happy": {"rate": (180, 205), "pitch": (80, 95), "pitch_range": (90, 100), "volume": (90, 110)},
    "sad": {"rate": (108, 120), "pitch": (10, 25), "pitch_range": (0, 10), "volume": (25, 40)},
    "angry": {"rate": (240, 270), "pitch": (20, 35), "pitch_range": (60, 85), "volume": (170, 200)},
}
NEUTRAL = {"rate": (135, 170), "pitch": (45, 55), "pitch_range": (40, 60), "volume": (60, 110)}

# Ranges of the factors by which the voices of the training split are changed. There are too few of them to learn what men and
# women, or feelings, have in common. The voices of the other splits are as they are.
VOICE_CHANGES = {
    "woman": {"voice_pitch": (0.9, 1.2), "voice_formants": (0.9, 1.05)},
    "man": {"voice_pitch": (0.75, 1.15), "voice_formants": (0.95, 1.1)},
}


@dataclass(frozen=True)
class Clip:
    """
    One example before its audio is rendered.

    Attributes:
        path (`str`): path of its audio relative to the dataset's folder.
        instruction, answer, task (`str`): as in the data file.
        text (`str`): spoken text; empty for sounds.
        speech (`dict`): arguments of [`EspeakSynthesizer.speak`]; empty for sounds.
        seed (`int`): seed of everything that is drawn while the audio is rendered.
    """

    path: str
    instruction: str
    answer: str
    task: str
    text: str
    speech: dict[str, Any]
    seed: int

    def rows(self) -> list[dict[str, Any]]:
        """Its row in the data file."""
        return [{"audio": self.path, "instruction": self.instruction, "answer": self.answer, "task": self.task}]


def plan_clips(task: str, split: str, count: int, seed: int = 0) -> list[Clip]:
    """
    Draws the clips of one task and split in random order, with classes and wordings in equal numbers.

    Args:
        task (`str`): `"keyword"`, `"speaker"`, `"emotion"` or `"sound"`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        count (`int`): number of clips.
        seed (`int`, defaults to 0): seed; the clips do not depend on other tasks and splits.

    Returns:
        `list[Clip]`: the clips.

    Raises:
        ValueError: for an unknown task or split, a count below 1 or a seed below 0.
    """
    for name, value, known in (("task", task, TASKS), ("split", split, SPLITS)):
        if value not in known:
            raise ValueError(f"There is no {name} {value!r}, expected one of {', '.join(known)}.")
    if count < 1 or seed < 0:
        raise ValueError(f"count={count} and seed={seed}: expected a count of 1 or more and a seed of 0 or more.")
    rng = np.random.default_rng([seed, TASKS.index(task), SPLITS.index(split)])
    answers = {
        "keyword": ANIMALS,
        "speaker": ["man", "woman"],
        "emotion": list(EMOTIONS),
        "sound": SOUNDS,
    }[task]
    instructions = balanced(rng, INSTRUCTIONS[task], count)
    clips = []
    for index, answer in enumerate(balanced(rng, answers, count)):
        text = ""
        speech: dict[str, Any] = {}
        if task != "sound":
            gender = answer if task == "speaker" else str(rng.choice(["woman", "man"]))
            if task == "keyword":
                text = str(rng.choice(CARRIERS[split])).format(answer)
            else:
                text = f"{rng.choice(SUBJECTS[split])} {rng.choice(PREDICATES[split])}."
            speech = {"voice": str(rng.choice(["en-us", "en"])), "variant": str(rng.choice(VOICES[split][gender]))}
            for name, (low, high) in (EMOTIONS[answer] if task == "emotion" else NEUTRAL).items():
                speech[name] = int(rng.integers(low, high + 1))
            if split == "train":
                for name, limits in VOICE_CHANGES[gender].items():
                    speech[name] = round(float(rng.uniform(*limits)), 2)
        clips.append(
            Clip(
                path=f"audio/{split}/{task}-{index:04d}.wav",
                instruction=instructions[index],
                answer=answer,
                task=task,
                text=text,
                speech=speech,
                seed=int(rng.integers(2**31)),
            )
        )
    return clips


def render_clip(clip: Clip, synthesizer: EspeakSynthesizer) -> np.ndarray:
    """
    Renders the audio of a clip. Speech starts after a random pause of at most 0.3 s.

    Args:
        clip ([`Clip`]): the clip.
        synthesizer ([`EspeakSynthesizer`]): speech synthesizer.

    Returns:
        `np.ndarray` of shape `(num_samples,)`: float32 samples at 16 kHz, 1 to 3 s.

    Raises:
        ImportError: if soxr is not installed.
        RuntimeError: if the speech is longer than 3 s.
    """
    rng = np.random.default_rng(clip.seed)
    shortest, longest = (round(seconds * SAMPLING_RATE) for seconds in DURATION_LIMITS)
    if not clip.speech:
        return SOUND_CLASSES[clip.answer](rng, rng.uniform(*DURATION_LIMITS), SAMPLING_RATE)
    try:
        import soxr
    except ImportError as error:
        raise ImportError('Resampling needs soxr: pip install "peft-listen[audio]"') from error
    spoken, sampling_rate = synthesizer.speak(clip.text, **clip.speech)
    spoken = soxr.resample(spoken, sampling_rate, SAMPLING_RATE)
    if spoken.size > longest:
        seconds = spoken.size / SAMPLING_RATE
        raise RuntimeError(
            f"{clip.text!r} takes {seconds:.1f} s, more than {DURATION_LIMITS[1]} s. Shorten the text or raise the rate."
        )
    pause = min(round(rng.uniform(0, 0.3) * SAMPLING_RATE), longest - spoken.size)
    after = max(shortest - pause - spoken.size, 0)
    return np.pad(spoken, (pause, after)).clip(-1, 1)


def make_dataset(
    output_dir: str | Path,
    seed: int = 0,
    train_per_task: int = 400,
    validation_per_task: int = 12,
    test_per_task: int = 32,
) -> Path:
    """
    Writes WAV files and `train.jsonl`, `validation.jsonl` and `test.jsonl`, or reuses them.

    Each line of a `.jsonl` file is `{"audio": path relative to the folder, "instruction": ..., "answer": ...,
    "task": ...}`. The tasks alternate. The audio is mono, 16-bit PCM, 16 kHz. See [`write_dataset`] for interrupted calls
    and existing folders. The same arguments and library versions give the same bytes.

    Args:
        output_dir (`str` or `Path`): folder of the dataset.
        seed (`int`, defaults to 0): seed of the dataset.
        train_per_task, validation_per_task, test_per_task (`int`): clips per task of each split.

    Returns:
        `Path`: the folder.

    Raises:
        FileExistsError: if the folder exists and was not written by this function.
        ImportError: if espeakng-loader, soundfile or soxr is not installed.
        ValueError: for a count below 1 or a seed below 0.
    """
    counts = {"train": train_per_task, "validation": validation_per_task, "test": test_per_task}
    plans = {(split, task): plan_clips(task, split, count, seed) for split, count in counts.items() for task in TASKS}
    request = describe_request(
        seed,
        counts,
        packages=("espeakng-loader", "numpy", "soundfile", "soxr"),
        sources=(__file__, speech_synthesis.__file__, sound_synthesis.__file__),
    )
    return write_dataset(output_dir, plans, request, _make_renderer)


def _make_renderer() -> Callable[[Clip], np.ndarray]:
    synthesizer = EspeakSynthesizer()  # a new one for each part, because its samples depend on earlier calls
    return lambda clip: render_clip(clip, synthesizer)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate the demo's dataset of speech and sounds.")
    parser.add_argument("output_dir", type=Path, help="folder of the dataset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-per-task", type=int, default=400, metavar="COUNT")
    parser.add_argument("--validation-per-task", type=int, default=12, metavar="COUNT")
    parser.add_argument("--test-per-task", type=int, default=32, metavar="COUNT")
    print(make_dataset(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
