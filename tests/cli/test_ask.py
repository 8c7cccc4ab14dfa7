import json
import re

import pytest
import soundfile
from transformers import pipeline

from peft_listen_cli import main


@pytest.fixture
def wav_path(tmp_path, clip):
    soundfile.write(tmp_path / "clip.wav", clip(0.5), 16_000, subtype="FLOAT")
    return str(tmp_path / "clip.wav")


@pytest.mark.parametrize("question", [["What is it?"], []])
def test_the_answer_of_the_pipeline_is_printed(composite_folder, wav_path, question, capsys):
    folder = str(composite_folder)
    assert main(["ask", wav_path, *question, "--model", folder, "--max-new-tokens", "5"]) == 0
    pipe = pipeline("audio-text-to-text", model=folder)
    (output,) = pipe(wav_path, text=question[0] if question else None, max_new_tokens=5)
    assert capsys.readouterr().out == output["generated_text"] + "\n"


def test_an_adapter_is_asked_by_its_folder(make_adapted, wav_path, tmp_path, capsys):
    make_adapted("listen").save_pretrained(tmp_path / "adapter")
    assert main(["ask", wav_path, "Who?", "--model", str(tmp_path / "adapter"), "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_the_clip_is_read_before_the_model(tmp_path, capsys):
    assert main(["ask", str(tmp_path / "missing.wav"), "Who?", "--model", str(tmp_path / "no_model")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("peft-listen: error: ") and "missing.wav: no such audio file" in error


def test_a_missing_model_is_explained(wav_path, tmp_path, capsys):
    assert main(["ask", wav_path, "Who?", "--model", str(tmp_path / "no_model")]) == 2
    assert re.search(r"The model '.*no_model' cannot be loaded\.", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("gone/base", "It is an adapter on 'gone/base', which must be found too"),
        (None, "does not name its base model"),
    ],
)
def test_a_missing_base_of_an_adapter_is_explained(make_adapted, wav_path, tmp_path, capsys, base, message):
    make_adapted("listen").save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    capsys.readouterr()  # the progress bars of making the adapter
    assert main(["ask", wav_path, "Who?", "--model", str(tmp_path / "adapter")]) == 2
    error = capsys.readouterr().err
    assert "peft-listen: error: The model " in error and message in error


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_a_length_below_one_is_refused(wav_path, number, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["ask", wav_path, "Who?", "--model", "m", "--max-new-tokens", number])
    assert exit_info.value.code == 2
    assert "--max-new-tokens" in capsys.readouterr().err
