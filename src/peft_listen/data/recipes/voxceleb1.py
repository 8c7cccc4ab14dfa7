"""VoxCeleb1: speaker verification."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder
from .wordings import draw_number


# The published lists of trials.
TRIAL_LISTS = {
    "test": "veri_test.txt",
    "test-cleaned": "veri_test2.txt",
    "extended": "list_test_all.txt",
    "extended-cleaned": "list_test_all2.txt",
    "hard": "list_test_hard.txt",
    "hard-cleaned": "list_test_hard2.txt",
}

# Folders with one folder for each speaker: both archives unpacked to one folder, or each to its own.
AUDIO_FOLDERS = ("wav", "dev/wav", "test/wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "dev", "test")

# Seconds of silence between the two utterances, which `benchmarks/mini_listen` uses too.
PAUSE = 0.4

ANSWERS = {"1": "Yes", "0": "No"}

_TRIAL = re.compile(r"(?P<label>[01])[ \t]+(?P<first>\S+)[ \t]+(?P<second>\S+)\s*")


@register_recipe("voxceleb1")
class VoxCeleb1(Recipe):
    """
    VoxCeleb1 (Nagrani et al., Interspeech 2017), for speaker verification.

    A trial compares two utterances. A row has one clip, so both are joined with 0.4 s of silence between them, and the
    answer is Yes for the same speaker, No for different ones. The joined clips are new files in the output folder.

    `test` has the official trials of `veri_test.txt`, of 40 speakers who are not in the development set, and `test-cleaned`
    the corrected list `veri_test2.txt`. `extended` and `hard` are VoxCeleb1-E and VoxCeleb1-H, whose speakers are in the
    development set: do not train on that if you report them.

    No pairs are published for training. In `train` each utterance of a speaker who is not in `veri_test.txt` is the first
    of one pair, alternately with another video of the same speaker and with another speaker, drawn by the seed (ours).

    The archives contain `wav/id10001/1zcIwhmdeo4/00001.wav`: speaker, video, utterance.
    """

    title = "VoxCeleb1"
    task = "sv"
    metrics = ("eer", "accuracy")
    license = (
        "A Creative Commons license; the copyright of the videos remains with their owners. "
        "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/"
    )
    layout = """\
veri_test.txt                    (and the other lists, each for its split)
wav/                             (or dev/wav and test/wav, or vox1_dev_wav/wav and vox1_test_wav/wav)
  id10001/1zcIwhmdeo4/           (speaker, video)
    00001.wav"""

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        folders = bool(_audio_folders(source))
        lists = {split: folders and source.has(name) for split, name in TRIAL_LISTS.items()}
        return {"train": lists["test"]} | lists

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        if split == "train":
            yield from self._drawn_pairs(source, seed)
            return
        folders = _audio_folders(source)
        for name, line in source.lines(TRIAL_LISTS[split]):
            if isinstance(line, Skipped):
                yield line
                continue
            trial = _TRIAL.fullmatch(line)
            if trial is None:
                yield Skipped("the line is not a trial: 1 or 0 and two paths", name)
                continue
            clips = [_find(source, folders, trial[side]) for side in ("first", "second")]
            yield Item(
                f"{trial['first']} {trial['second']}", ANSWERS[trial["label"]], (clips[0], clips[1]), pause=PAUSE
            )

    def _drawn_pairs(self, source: SourceFolder, seed: int) -> Iterator[Item | Skipped]:
        held_out = set()
        for _, line in source.lines(TRIAL_LISTS["test"]):
            if not isinstance(line, Skipped) and (trial := _TRIAL.fullmatch(line)):
                held_out |= {trial[side].partition("/")[0] for side in ("first", "second")}
        # Speaker to video to the paths of the utterances.
        speakers: dict[str, dict[str, list[str]]] = defaultdict(dict)
        for folder in _audio_folders(source):
            for speaker in set(source.folders(folder)) - held_out:
                for video in source.folders(f"{folder}/{speaker}"):
                    path = f"{folder}/{speaker}/{video}"
                    clips = [f"{path}/{clip}" for clip in source.files(path, ".wav")]
                    if clips:
                        speakers[speaker][video] = clips
        # Without a second video there is no pair of the same speaker in different recordings.
        pairable = sorted(name for name, videos in speakers.items() if len(videos) > 1)
        is_same = True
        for speaker, videos in sorted(speakers.items()):
            for video, clips in sorted(videos.items()):
                for clip in clips:
                    if len(videos) < 2:
                        yield Skipped("the speaker has only one video", clip, by_rule=True)
                        continue
                    if is_same:
                        second = _draw(videos, sorted(videos.keys() - {video}), seed, clip)
                    else:
                        others = speakers[_draw_other(pairable, speaker, seed, clip)]
                        second = _draw(others, sorted(others), seed, clip)
                    first, last = ("/".join(each.split("/")[-3:]) for each in (clip, second))
                    yield Item(f"{first} {last}", "Yes" if is_same else "No", (clip, second), pause=PAUSE)
                    # A single speaker has no pairs with another one.
                    is_same = not is_same or len(pairable) < 2


def _draw_other(speakers: list[str], speaker: str, seed: int, clip: str) -> str:
    """One of the sorted speakers, but not this one."""
    drawn = draw_number(seed, clip, "speaker") % (len(speakers) - 1)
    return speakers[drawn if speakers[drawn] < speaker else drawn + 1]


def _draw(videos: dict[str, list[str]], names: list[str], seed: int, clip: str) -> str:
    clips = videos[names[draw_number(seed, clip, "video") % len(names)]]
    return clips[draw_number(seed, clip, "utterance") % len(clips)]


def _audio_folders(source: SourceFolder) -> list[str]:
    """The folders that contain those of the speakers."""
    return [folder for folder in AUDIO_FOLDERS if source.has(folder) and any(map(_is_speaker, source.folders(folder)))]


def _is_speaker(name: str) -> bool:
    return re.fullmatch(r"id\d{5}", name) is not None


def _find(source: SourceFolder, folders: list[str], clip: str) -> str:
    return source.first(*(f"{folder}/{clip}" for folder in folders)) or f"{folders[0]}/{clip}"
