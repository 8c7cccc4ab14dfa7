import pytest

from demo import make_dataset
from demo.scoring import is_right, options_of


ANIMALS = make_dataset.ANIMALS
SOUNDS = make_dataset.SOUNDS
GENDERS = ["man", "woman"]
EMOTIONS = list(make_dataset.EMOTIONS)


@pytest.mark.parametrize(
    ("generated", "answer", "options", "expected"),
    [
        ("horse", "horse", ANIMALS, True),
        ("Horse.", "horse", ANIMALS, True),
        ("The speaker mentions a cat, which is", "cat", ANIMALS, True),
        ("The speaker mentions a cat, which is", "horse", ANIMALS, False),
        ("The cat's owner", "cat", ANIMALS, True),
        ("Two cats!", "cat", ANIMALS, True),
        ("A cat, or maybe a tiger", "cat", ANIMALS, False),
        ("cat, horse, tiger or elephant", "cat", ANIMALS, False),
        ("It is a catastrophe", "cat", ANIMALS, False),
        ("", "cat", ANIMALS, False),
        ("The speaker is a woman.", "woman", GENDERS, True),
        ("The speaker is a woman.", "man", GENDERS, False),
        ("a man and a woman", "man", GENDERS, False),
        ("The SIREN of a car", "a siren", SOUNDS, True),
        ("a siren", "a siren", SOUNDS, True),
        ("I hear one bird", "birds", SOUNDS, True),
        ("The train is late", "rain", SOUNDS, False),
        ("They sound angry and sad", "angry", EMOTIONS, False),
        ("They sound *angry*", "angry", EMOTIONS, True),
    ],
)
def test_an_answer_is_right_if_it_names_the_right_option_alone(
    generated: str, answer: str, options: list[str], expected: bool
) -> None:
    assert is_right(generated, answer, options) is expected


@pytest.mark.parametrize("options", [ANIMALS, SOUNDS, GENDERS, EMOTIONS])
def test_every_option_is_right_for_itself_only(options: list[str]) -> None:
    for answer in options:
        assert [option for option in options if is_right(option, answer, options)] == [answer]


def test_the_test_data_contain_all_options_that_the_questions_name() -> None:
    clips = [clip for task in make_dataset.TASKS for clip in make_dataset.plan_clips(task, "test", 16)]
    options = options_of(row for clip in clips for row in clip.rows())
    expected = {"keyword": ANIMALS, "speaker": GENDERS, "emotion": EMOTIONS, "sound": SOUNDS}
    assert options == {task: sorted(names) for task, names in expected.items()}
    for task, instructions in make_dataset.INSTRUCTIONS.items():
        for instruction in instructions:
            assert all(name in instruction for name in options[task])
