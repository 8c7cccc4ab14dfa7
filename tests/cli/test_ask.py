import json
import re
import shutil

import pytest
import soundfile
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, TextStreamer, pipeline

from peft_listen import ListenConfig
from peft_listen.pipelines.asking import AnswerStreamer
from peft_listen.pipelines.loading import load_pipeline
from peft_listen_cli import main
from tests import small_models


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
    assert re.search(r"There is no file or folder '.*no_model'\.", capsys.readouterr().err)


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


@pytest.fixture(scope="module")
def text_models(tmp_path_factory):
    """Folders of a language model with a chat template, of one without, and of LiSTEN adapters on both."""
    folder = tmp_path_factory.mktemp("text")
    for name, tokenizer in (("plain", small_models.make_tokenizer()), ("chat", small_models.make_chat_tokenizer())):
        llm = small_models.make_llm("llama")
        llm.resize_token_embeddings(len(tokenizer))
        llm.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        base = AutoModelForCausalLM.from_pretrained(folder / name)
        config = ListenConfig(pool_size=8, prompt_length=3, init_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        with torch.no_grad():
            for parameter in (each for each in model.parameters() if each.requires_grad):
                parameter.mul_(3)  # so that the adapter changes the answer
        model.save_pretrained(folder / f"{name}-adapter")
    return folder


class TestWithoutAudio:
    @pytest.mark.parametrize("name", ["plain", "plain-adapter", "chat", "chat-adapter"])
    def test_a_text_model_is_asked_without_a_clip(self, text_models, name, capsys):
        folder = str(text_models / name)
        assert main(["ask", "What is it?", "--no-audio", "--model", folder, "--max-new-tokens", "8"]) == 0
        pipe = pipeline("text-generation", model=folder)
        question = [{"role": "user", "content": "What is it?"}] if "chat" in name else "What is it?"
        (output,) = pipe(question, max_new_tokens=8, return_full_text=False, do_sample=False)
        assert capsys.readouterr().out == output["generated_text"] + "\n"

    def test_the_adapter_changes_the_answer(self, text_models, capsys):
        answers = set()
        for name in ("plain", "plain-adapter"):
            main(["ask", "What is it?", "--no-audio", "--model", str(text_models / name), "--max-new-tokens", "8"])
            answers.add(capsys.readouterr().out)
        assert len(answers) == 2

    def test_an_audio_model_is_asked_without_a_clip(self, composite_folder, capsys):
        folder = str(composite_folder)
        assert main(["ask", "What is it?", "--no-audio", "--model", folder, "--max-new-tokens", "5"]) == 0
        (output,) = pipeline("audio-text-to-text", model=folder)(text="What is it?", max_new_tokens=5)
        assert capsys.readouterr().out == output["generated_text"] + "\n"

    @pytest.mark.parametrize("name", ["plain", "plain-adapter"])
    def test_a_text_model_cannot_be_asked_about_a_clip(self, text_models, wav_path, name, capsys):
        assert main(["ask", wav_path, "Who?", "--model", str(text_models / name)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "LlamaForCausalLM, a language model without audio" in captured.err and "--no-audio" in captured.err
        assert "Traceback" not in captured.err

    @pytest.mark.parametrize("arguments", [[], ["--no-audio"], ["a.wav", "Who?", "--no-audio"]])
    def test_clip_and_question_must_fit(self, arguments, capsys):
        assert main(["ask", *arguments, "--model", "m"]) == 2
        assert "--no-audio" in capsys.readouterr().err


class TestPlacement:
    @pytest.fixture(scope="class")
    def half_folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("half")
        small_models.make_model().to(torch.bfloat16).save_pretrained(folder)
        small_models.make_processor().save_pretrained(folder)
        return str(folder)

    @pytest.mark.parametrize(
        ("dtype", "device", "expected"),
        [
            (None, "cpu", torch.float32),
            ("auto", "cpu", torch.bfloat16),
            ("bfloat16", "cpu", torch.bfloat16),
            ("float16", "cpu", torch.float16),
        ],
    )
    def test_the_default_data_type_on_a_cpu_is_float32(self, half_folder, dtype, device, expected):
        model = load_pipeline(half_folder, dtype, device).model
        assert model.model.language_model.dtype == expected and model.device == torch.device("cpu")
        assert next(model.model.multi_modal_projector.parameters()).dtype == torch.float32

    def test_the_default_on_an_accelerator_is_that_of_the_checkpoint(self, half_folder, monkeypatch):
        used: dict = {}
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
        monkeypatch.setattr(AutoModelForMultimodalLM, "from_pretrained", lambda name, dtype: used.update(dtype=dtype))
        with pytest.raises(AttributeError):  # there is no model
            load_pipeline(half_folder)
        assert used == {"dtype": "auto"}

    @pytest.mark.parametrize("device", ["nowhere", "xpu:7", "cuda:99"])
    def test_a_device_that_is_not_there_is_refused(self, wav_path, device, capsys):
        assert main(["ask", wav_path, "Who?", "--model", "m", "--device", device]) == 2
        assert f"`device={device}` is not" in capsys.readouterr().err

    def test_an_unknown_data_type_is_refused(self, wav_path, capsys):
        with pytest.raises(SystemExit):
            main(["ask", wav_path, "Who?", "--model", "m", "--dtype", "int3"])
        assert "--dtype" in capsys.readouterr().err


class TestStreaming:
    def test_the_answer_is_printed_while_it_is_generated(self, composite_folder, wav_path, monkeypatch):
        puts = []
        put = TextStreamer.put
        monkeypatch.setattr(TextStreamer, "put", lambda self, value: (puts.append(value.numel()), put(self, value)))
        assert main(["ask", wav_path, "Who?", "--model", str(composite_folder), "--max-new-tokens", "4"]) == 0
        assert puts[1:] == [1, 1, 1, 1]

    def test_the_end_of_an_answer_is_not_printed(self, capsys):
        tokenizer = small_models.make_tokenizer()
        tokenizer.add_tokens("<end>")  # not marked as special
        answer, end = tokenizer("a cat", add_special_tokens=False).input_ids, tokenizer.convert_tokens_to_ids("<end>")
        streamer = AnswerStreamer(tokenizer, end)
        streamer.put(torch.tensor([[5, 6, 7]]))  # the prompt
        for token in (*answer, end):
            streamer.put(torch.tensor([token]))
        streamer.end()
        assert capsys.readouterr().out == "a cat\n"

    def test_beams_are_printed_when_they_are_complete(self, composite_folder, wav_path, tmp_path, capsys):
        shutil.copytree(composite_folder, tmp_path / "beams")
        path = tmp_path / "beams" / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_beams": 2}))
        assert main(["ask", wav_path, "Who?", "--model", str(tmp_path / "beams"), "--max-new-tokens", "4"]) == 0
        (output,) = pipeline("audio-text-to-text", model=str(tmp_path / "beams"))(
            wav_path, text="Who?", max_new_tokens=4
        )
        assert capsys.readouterr().out == output["generated_text"] + "\n"
