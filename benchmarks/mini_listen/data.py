"""The benchmark's dataset: short WAV files for twelve tasks, six of them modeled on those of LiSTEN (arXiv 2505.18517).

    python -m benchmarks.mini_listen.data FOLDER [--form small]

Nine tasks are asked about the same clips, each of one spoken sentence, so that only the instruction tells them apart:

- "asr": the transcript (lower case, no punctuation);
- "en2zh": the Chinese translation;
- "sqa": a question about the sentence, with an answer of one or two words;
- "first_word", "last_word": the first or the last word;
- "word_count": the number of words;
- "gender": whether a woman or a man speaks;
- "tempo": whether the speech is fast or slow;
- "sentence_type": whether the sentence is a question or a statement.

Half of the sentences are questions, half are spoken by women, and half are fast. Three tasks have clips of their own:

- "er": whether a sentence is spoken calmly, happily, sadly or angrily (rate, pitch, pitch range and loudness);
- "sv": whether two sentences, with a pause of 0.4 s between them, have the same speaker (Yes and No equally often; in half
  of the pairs with different speakers, both have the same gender);
- "acap": a description of one or two sounds in order, each loud or soft: "a loud siren, then a soft bell".

The splits have different sentences, voices, wordings of the instructions, and parameters of the sounds, which are drawn from
different stripes of their ranges (see `StripedGenerator`). They share the words of the sentences, the settings of the
emotions and the kinds of sounds, because a model can only learn what occurs in training.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from offline import sound_synthesis, speech_synthesis
from offline.dataset_folder import SAMPLING_RATE, balanced, describe_request, write_dataset
from offline.sound_synthesis import SOUND_CLASSES
from offline.speech_synthesis import EspeakSynthesizer

from . import instructions, questions, sentences
from .instructions import reworded
from .questions import KINDS, ask
from .sentences import SPLITS, Sentence, sentences_of
from .settings import FORMS


# The kinds of clips, and the tasks that are asked about each.
ASKED_ABOUT: dict[str, tuple[str, ...]] = {
    "speech": (*("asr", "en2zh", "sqa", "first_word", "last_word", "word_count", "gender", "tempo", "sentence_type"),),
    "er": ("er",),
    "sv": ("sv",),
    "acap": ("acap",),
}

# Variants of eSpeak NG that a small speech recognizer understands and whose long-term spectra differ.
VOICES = {
    "train": {
        "woman": ["f1", "f2", "f4", "Annie", "belinda", "steph"],
        "man": [
            *("adam", "david", "Denis", "edward", "Henrique", "iven4", "klatt"),
            *("Michael", "Mike", "m2", "rob", "sandro", "Storm"),
        ],
    },
    "validation": {"woman": ["f5", "linda"], "man": ["m5", "paul", "quincy"]},
    "test": {
        "woman": ["f3", "Andrea", "grandma"],
        "man": ["announcer", "grandpa", "gustave", "ian", "m8", "Nguyen"],
    },
}
GENDERS = ("woman", "man")

# Ranges of the settings of `EspeakSynthesizer.speak`.
NEUTRAL = {"rate": (165, 195), "pitch": (45, 55), "pitch_range": (40, 60), "volume": (60, 110)}
EMOTIONS = {
    "calm": {"rate": (168, 182), "pitch": (45, 55), "pitch_range": (20, 35), "volume": (55, 75)},
    "happy": {"rate": (195, 220), "pitch": (80, 95), "pitch_range": (90, 100), "volume": (90, 110)},
    "sad": {"rate": (148, 160), "pitch": (10, 25), "pitch_range": (0, 10), "volume": (25, 40)},
    "angry": {"rate": (240, 265), "pitch": (25, 40), "pitch_range": (60, 85), "volume": (170, 200)},
}

TEMPOS = {"slow": (125, 145), "fast": (215, 240)}  # words per minute

# Shares of the patterns among the sentences of a kind of clips. Clips with two utterances use short sentences.
PATTERN_SHARES = {
    "speech": {"counted": 0.3, "coloured": 0.3, "located": 0.1, "acting": 0.15, "timed": 0.15},
    "er": {"counted": 0.6, "timed": 0.4},
    "sv": {"counted": 0.6, "timed": 0.4},
}
COUNTS = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}  # words of a sentence

# Words of a caption for each sound class; {} is "loud" or "soft".
CAPTIONS = {
    "a siren": "a {} siren",
    "beeps": "{} beeps",
    "a bell": "a {} bell",
    "an engine": "a {} engine",
    "the wind": "{} wind",
    "rain": "{} rain",
    "knocking": "{} knocking",
    "birds": "{} birds",
}
# Ranges of the largest sample.
LOUDNESS = {"loud": (0.5, 0.9), "soft": (0.03, 0.07)}

# Seconds of one utterance, including the silence before and after it, by the number of utterances of a clip. Both together
# stay within 5 s, the length that the speech encoder of the base model gets.
SPEECH_LIMITS = {1: (0.8, 4.0), 2: (0.8, 2.3)}
SOUND_LIMITS = (1.0, 1.4)
SPEAKER_GAP, SOUND_GAP = 0.4, 0.1
SILENCE = 0.01  # share of the largest sample below which the ends of an utterance are trimmed

STRIPES = 20
# Stripes of a parameter's range that belong to a split; the others belong to training.
HELD_OUT_STRIPES = {"validation": (3, 13), "test": (6, 9, 16, 19)}


class StripedGenerator(np.random.Generator):
    """
    A generator whose single uniform numbers, and thus the parameters of a sound, fall into the stripes of a split.

    A range is divided into 20 stripes of equal width: 14 for training, 2 for validation and 4 for test. Arrays of uniform
    numbers (the times of rain drops) and noise are drawn as usual.

    Args:
        seed (`int`): seed of the generator.
        split (`str`): `"train"`, `"validation"` or `"test"`.
    """

    def __init__(self, seed: int, split: str) -> None:
        super().__init__(np.random.PCG64(seed))
        held_out = {stripe for stripes in HELD_OUT_STRIPES.values() for stripe in stripes}
        self.stripes = HELD_OUT_STRIPES.get(split) or [stripe for stripe in range(STRIPES) if stripe not in held_out]

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:  # type: ignore[override]
        if size is not None:
            return super().uniform(low, high, size)
        stripe = self.stripes[int(self.integers(len(self.stripes)))]
        return low + (high - low) * (stripe + self.random()) / STRIPES


@dataclass(frozen=True)
class Utterance:
    """
    A spoken sentence.

    Attributes:
        text (`str`): the sentence.
        settings (`dict`): arguments of `EspeakSynthesizer.speak`.
        words (`str`): its transcript, in lower case without punctuation.
        manner (`str`): how it is spoken, such as " in a sad voice".
    """

    text: str
    settings: dict[str, Any]
    words: str = ""
    manner: str = ""

    @property
    def speaker(self) -> str:
        """One of `GENDERS`."""
        voice = self.settings["variant"]
        return next(gender for voices in VOICES.values() for gender in GENDERS if voice in voices[gender])


@dataclass(frozen=True)
class Sound:
    """A class of `SOUND_CLASSES` and its loudness, "loud" or "soft"."""

    name: str
    loudness: str

    @property
    def caption(self) -> str:
        return CAPTIONS[self.name].format(self.loudness)


@dataclass(frozen=True)
class Asked:
    """
    What one task asks about a clip.

    Attributes:
        task (`str`): one of `TASKS`.
        answer (`str`): right answer.
        details (`dict`): further fields of its row in the data file.
        instruction (`str`): wording; training draws others.
    """

    task: str
    answer: str
    details: dict[str, Any] = field(default_factory=dict)
    instruction: str = ""


@dataclass(frozen=True)
class Clip:
    """
    One clip before its audio is rendered.

    Attributes:
        path (`str`): path of its audio relative to the dataset's folder.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        kind (`str`): one of `ASKED_ABOUT`.
        parts (`tuple[Utterance | Sound, ...]`): utterances or sounds, in order.
        asked (`tuple[Asked, ...]`): what is asked about it.
        seed (`int`): seed of everything that is drawn while the audio is rendered.
    """

    path: str
    split: str
    kind: str
    parts: tuple[Utterance | Sound, ...]
    asked: tuple[Asked, ...]
    seed: int

    @property
    def heard(self) -> str:
        """What a listener hears, as text: the transcript, the speaker and the way of speaking, or the sounds."""
        if self.kind == "acap":
            return f"Sounds: {', then '.join(part.caption for part in self.parts if isinstance(part, Sound))}."
        spoken = [part for part in self.parts if isinstance(part, Utterance)]
        return " ".join(f'A {part.speaker} says{part.manner}: "{part.words}"' for part in spoken)

    def rows(self) -> list[dict[str, Any]]:
        """Its rows in the data file, one for each task."""
        utterances = [part for part in self.parts if isinstance(part, Utterance)]
        return [
            {
                "audio": self.path,
                "instruction": asked.instruction,
                "answer": asked.answer,
                "task": asked.task,
                "sentences": [part.text for part in utterances],
                "voices": [part.settings["variant"] for part in utterances],
                "sounds": [part.caption for part in self.parts if isinstance(part, Sound)],
                "heard": self.heard,
                **asked.details,
            }
            for asked in self.asked
        ]


# --------------------------------------------------------------------------------------------------------------------
# Planning
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """The parts of a clip, and what is asked about it."""

    parts: tuple[Utterance | Sound, ...]
    asked: tuple[Asked, ...]


Planner = Callable[[str, int, int, np.random.Generator], list[Draft]]


def plan_clips(kind: str, split: str, count: int, seed: int = 0) -> list[Clip]:
    """
    Draws the clips of one kind and split, with classes, wordings and kinds of questions in equal numbers.

    Args:
        kind (`str`): one of `ASKED_ABOUT`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        count (`int`): number of clips.
        seed (`int`, defaults to 0): seed; the clips do not depend on other kinds and splits.

    Returns:
        `list[Clip]`: the clips.

    Raises:
        ValueError: for an unknown kind or split, a count below 1 or a seed below 0.
    """
    for name, value, known in (("kind of clips", kind, ASKED_ABOUT), ("split", split, SPLITS)):
        if value not in known:
            raise ValueError(f"There is no {name} {value!r}, expected one of {', '.join(known)}.")
    if count < 1 or seed < 0:
        raise ValueError(f"count={count} and seed={seed}: expected a count of 1 or more and a seed of 0 or more.")
    rng = np.random.default_rng([seed, list(PLANNERS).index(kind), SPLITS.index(split)])
    drafts = PLANNERS[kind](split, count, seed, rng)
    wordings = {task: _wordings(task, split, drafts, rng) for task in ASKED_ABOUT[kind]}
    return [
        Clip(
            path=f"audio/{split}/{kind}-{index:04d}.wav",
            split=split,
            kind=kind,
            parts=draft.parts,
            asked=tuple(replace(asked, instruction=wordings[asked.task][index]) for asked in draft.asked),
            seed=int(rng.integers(2**31)),
        )
        for index, draft in enumerate(drafts)
    ]


def _wordings(task: str, split: str, drafts: list[Draft], rng: np.random.Generator) -> list[str]:
    """The wording of a task for each clip: each as often, in random order."""
    order = rng.permutation(len(drafts))
    rows = [{"task": task, **asked.details} for draft in drafts for asked in draft.asked if asked.task == task]
    drawn = reworded([rows[index] for index in order], split)
    return [drawn[place]["instruction"] for place in np.argsort(order)]


def _plan_speech(split: str, count: int, seed: int, rng: np.random.Generator) -> list[Draft]:
    drafts = []
    kinds: dict[str, list[str]] = {}  # for each pattern, the kinds of questions that are left in this round
    drawn = _draw_sentences("speech", split, count, seed, rng)
    classes = (balanced(rng, names, count) for names in ((False, True), GENDERS, tuple(TEMPOS)))
    for sentence, is_question, gender, tempo in zip(drawn, *classes, strict=True):
        spoken = sentence.as_question() if is_question else sentence
        waiting = kinds.setdefault(spoken.pattern, [])
        if not waiting:
            waiting += rng.permutation(KINDS[spoken.pattern]).tolist()
        kind = waiting.pop()
        question = ask(spoken, kind)
        details = {"question": kind, "direct": question.direct, "indirect": question.indirect}
        words = spoken.english.split()
        asked = (
            Asked("asr", spoken.english),
            Asked("en2zh", spoken.chinese),
            Asked("sqa", question.answer, details),
            Asked("first_word", words[0]),
            Asked("last_word", words[-1]),
            Asked("word_count", COUNTS[len(words)]),
            Asked("gender", gender),
            Asked("tempo", tempo),
            Asked("sentence_type", "question" if is_question else "statement"),
        )
        voice = str(rng.choice(VOICES[split][gender]))
        utterance = _utterance(spoken, voice, {**NEUTRAL, "rate": TEMPOS[tempo]}, rng, manner=f" in {tempo} speech")
        drafts.append(Draft((utterance,), asked))
    return drafts


def _plan_er(split: str, count: int, seed: int, rng: np.random.Generator) -> list[Draft]:
    drafts = []
    drawn = _draw_sentences("er", split, count, seed, rng)
    for sentence, emotion in zip(drawn, balanced(rng, list(EMOTIONS), count), strict=True):
        voice = str(rng.choice(VOICES[split][str(rng.choice(GENDERS))]))
        manner = f" in {'an' if emotion == 'angry' else 'a'} {emotion} voice"
        utterance = _utterance(sentence, voice, EMOTIONS[emotion], rng, manner)
        drafts.append(Draft((utterance,), (Asked("er", emotion, {"emotion": emotion}),)))
    return drafts


def _plan_sv(split: str, count: int, seed: int, rng: np.random.Generator) -> list[Draft]:
    drawn = _draw_sentences("sv", split, 2 * count, seed, rng)
    drafts = []
    # "same" is listed twice, which makes Yes and No equally frequent.
    for index, kind in enumerate(balanced(rng, ["same", "same", "same gender", "other gender"], count)):
        gender = str(rng.choice(GENDERS))
        first = second = str(rng.choice(VOICES[split][gender]))
        if kind != "same":
            other = gender if kind == "same gender" else next(name for name in GENDERS if name != gender)
            second = str(rng.choice([voice for voice in VOICES[split][other] if voice != first]))
        parts = tuple(
            _utterance(sentence, voice, NEUTRAL, rng, manner=f" in the voice {voice}")
            for sentence, voice in zip(drawn[2 * index : 2 * index + 2], (first, second), strict=True)
        )
        drafts.append(Draft(parts, (Asked("sv", "Yes" if kind == "same" else "No", {"pair": kind}),)))
    return drafts


def _plan_acap(split: str, count: int, seed: int, rng: np.random.Generator) -> list[Draft]:
    names = iter(balanced(rng, list(CAPTIONS), 2 * count))
    loudnesses = iter(balanced(rng, list(LOUDNESS), 2 * count))
    drafts = []
    for number in balanced(rng, [1, 2], count):
        first = next(names)
        kinds = [first]
        if number == 2:
            second = next(names)
            # Two sounds of the same class could not be distinguished.
            kinds.append(second if second != first else str(rng.choice([n for n in CAPTIONS if n != first])))
        parts = tuple(Sound(name, next(loudnesses)) for name in kinds)
        drafts.append(Draft(parts, (Asked("acap", ", then ".join(part.caption for part in parts)),)))
    return drafts


PLANNERS: dict[str, Planner] = {
    "speech": _plan_speech,
    "er": _plan_er,
    "sv": _plan_sv,
    "acap": _plan_acap,
}


def _draw_sentences(kind: str, split: str, count: int, seed: int, rng: np.random.Generator) -> list[Sentence]:
    """Sentences of the kind's patterns in random order; a sentence is repeated only after all others of its pattern."""
    shares = PATTERN_SHARES[kind]
    ends = np.round(np.cumsum(list(shares.values())) * count).astype(int)
    drawn: list[Sentence] = []
    for pattern, end in zip(shares, ends, strict=True):
        drawn += balanced(rng, sentences_of(pattern, split, seed), end - len(drawn)) if end > len(drawn) else []
    return [drawn[index] for index in rng.permutation(count)]


def _utterance(
    sentence: Sentence,
    voice: str,
    ranges: Mapping[str, tuple[int, int]],
    rng: np.random.Generator,
    manner: str = "",
) -> Utterance:
    settings = {name: int(rng.integers(low, high + 1)) for name, (low, high) in ranges.items()}
    return Utterance(sentence.spoken, {"voice": "en-us", "variant": voice, **settings}, sentence.english, manner)


# --------------------------------------------------------------------------------------------------------------------
# Rendering
# --------------------------------------------------------------------------------------------------------------------


def render_clip(clip: Clip, synthesizer: EspeakSynthesizer) -> np.ndarray:
    """
    Renders the audio of a clip.

    Args:
        clip ([`Clip`]): the clip.
        synthesizer ([`EspeakSynthesizer`]): speech synthesizer.

    Returns:
        `np.ndarray` of shape `(num_samples,)`: float32 samples at 16 kHz, 0.8 to 5 s.

    Raises:
        ImportError: if soxr is not installed.
        RuntimeError: if an utterance is longer than 4 s, or one of two longer than 2.3 s.
    """
    rng = StripedGenerator(clip.seed, clip.split)
    rendered = [
        _render_utterance(part, rng, synthesizer, SPEECH_LIMITS[len(clip.parts)])
        if isinstance(part, Utterance)
        else _level(SOUND_CLASSES[part.name](rng, rng.uniform(*SOUND_LIMITS), SAMPLING_RATE), part.loudness, rng)
        for part in clip.parts
    ]
    gap = np.zeros(round((SOUND_GAP if clip.kind == "acap" else SPEAKER_GAP) * SAMPLING_RATE), np.float32)
    joined = [piece for samples in rendered for piece in (gap, samples)][1:]
    return np.concatenate(joined).clip(-1, 1)


def _render_utterance(
    utterance: Utterance, rng: np.random.Generator, synthesizer: EspeakSynthesizer, limits: tuple[float, float]
) -> np.ndarray:
    try:
        import soxr
    except ImportError as error:
        raise ImportError('Resampling needs soxr: pip install "peft-listen[audio]"') from error
    spoken, sampling_rate = synthesizer.speak(utterance.text, **utterance.settings)
    spoken = soxr.resample(spoken, sampling_rate, SAMPLING_RATE)
    audible = np.flatnonzero(np.abs(spoken) > SILENCE * np.abs(spoken).max())
    spoken = spoken[audible[0] : audible[-1] + 1]
    shortest, longest = (round(seconds * SAMPLING_RATE) for seconds in limits)
    if spoken.size > longest:
        seconds = spoken.size / SAMPLING_RATE
        raise RuntimeError(
            f"{utterance.text!r} takes {seconds:.1f} s with {utterance.settings}, more than {limits[1]} s. Shorten "
            "the text or raise the rate."
        )
    before = min(round(rng.uniform(0.02, 0.12) * SAMPLING_RATE), longest - spoken.size)
    after = min(round(0.05 * SAMPLING_RATE), longest - spoken.size - before)
    return np.pad(spoken, (before, max(after, shortest - spoken.size - before)))


def _level(samples: np.ndarray, loudness: str, rng: np.random.Generator) -> np.ndarray:
    return (samples * rng.uniform(*LOUDNESS[loudness]) / np.abs(samples).max()).astype(np.float32)


def make_data(folder: str | Path, sizes: Mapping[str, int], seed: int = 0, threads: int = 1) -> Path:
    """
    Writes the benchmark's WAV files and `train.jsonl`, `validation.jsonl` and `test.jsonl`, or reuses them.

    Each line is `{"audio": path relative to the folder, "instruction", "answer", "task", "sentences", "voices",
    "sounds", "heard", ...}`, of which `peft_listen.data.read_examples` reads the first four. See [`write_dataset`] for
    interrupted calls and existing folders. The same arguments and library versions give the same bytes.

    Args:
        folder (`str` or `Path`): folder of the dataset.
        sizes (`Mapping[str, int]`): clips of each kind, by split, which is also the number of examples of each task; see
            [`Form.sizes`].
        seed (`int`, defaults to 0): seed of the dataset.
        threads (`int`, defaults to 1): threads that render clips at the same time; the bytes do not depend on it.

    Returns:
        `Path`: the folder.

    Raises:
        FileExistsError: if the folder exists and was not written by this function.
        ImportError: if espeakng-loader, soundfile or soxr is not installed.
        ValueError: if a split is missing or unknown, a count is below 1, or the seed is below 0.
    """
    if set(sizes) != set(SPLITS):
        raise ValueError(f"Expected a size for each of {', '.join(SPLITS)}, got {dict(sizes)}.")
    plans = {(split, kind): plan_clips(kind, split, sizes[split], seed) for split in SPLITS for kind in ASKED_ABOUT}
    modules = (instructions, questions, sentences, speech_synthesis, sound_synthesis)
    request = describe_request(
        seed,
        {split: sizes[split] for split in SPLITS},
        packages=("espeakng-loader", "numpy", "soundfile", "soxr"),
        sources=(__file__, *(module.__file__ for module in modules)),
    )
    return write_dataset(folder, plans, request, _make_renderer, threads)


def _make_renderer() -> Callable[[Clip], np.ndarray]:
    synthesizer = EspeakSynthesizer()  # a new one for each part, because its samples depend on earlier calls
    return lambda clip: render_clip(clip, synthesizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the dataset")
    parser.add_argument("--form", choices=list(FORMS), default="small", help="which sizes (default: small)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="that render clips at the same time")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, metavar="COUNT", help="clips of each kind (default: the form's)")
    arguments = parser.parse_args()
    sizes = {split: getattr(arguments, split) or size for split, size in FORMS[arguments.form].sizes.items()}
    print(make_data(arguments.folder, sizes, arguments.seed, arguments.threads))


if __name__ == "__main__":
    main()
