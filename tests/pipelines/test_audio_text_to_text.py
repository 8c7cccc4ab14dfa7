import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import soundfile
import torch
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    TextIteratorStreamer,
    TextStreamer,
    WhisperFeatureExtractor,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.models.audio_listen import audio_chat_template
from peft_listen.pipelines import DEFAULT_INSTRUCTION, AudioTextToTextPipeline
from tests.device import test_device
from tests.small_models import LLM_CONFIGS, QFORMER


SAMPLING_RATE = 16_000
LENGTH = {"max_new_tokens": 6}  # the same as in the `pipe` fixture
QUESTION = "What?"


def answer_of(outputs):
    (output,) = outputs
    return output["generated_text"]


@pytest.fixture(scope="module")
def wav_folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("wav")
    for index, seconds in enumerate((0.4, 1.1, 2.0)):
        soundfile.write(folder / f"{index}.wav", clip(seconds, seed=index), SAMPLING_RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def waveforms(wav_folder):
    return [soundfile.read(wav_folder / f"{index}.wav", dtype="float32")[0] for index in range(3)]


@pytest.fixture(scope="module")
def paths(wav_folder):
    return [str(wav_folder / f"{index}.wav") for index in range(3)]


@pytest.fixture(scope="module")
def answers(pipe, paths):
    """The pipeline's outputs for each clip alone."""
    outputs = [pipe(path, text=QUESTION) for path in paths]
    assert len({answer_of(output) for output in outputs}) == 3, "the tests need a different answer to each clip"
    return outputs


@pytest.fixture(scope="module")
def server(wav_folder):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(wav_folder)))
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def chat_about(clip, question=QUESTION, key="audio"):
    return [{"role": "user", "content": [{"type": "audio", key: clip}, {"type": "text", "text": question}]}]


class TestInputForms:
    def test_one_input_gives_a_list_with_one_dictionary(self, pipe, paths):
        (output,) = pipe(paths[0], text=QUESTION)
        assert output.keys() == {"input_text", "generated_text"}
        assert output["input_text"] == QUESTION
        assert isinstance(output["generated_text"], str) and output["generated_text"]

    def test_every_form_of_a_clip_gives_the_same_answer(self, pipe, server, wav_folder, paths, waveforms, answers):
        content = (wav_folder / "0.wav").read_bytes()
        forms = [
            wav_folder / "0.wav",
            f"{server}/0.wav",
            content,
            io.BytesIO(content),
            waveforms[0],
            torch.tensor(waveforms[0]),
            waveforms[0].tolist(),
            np.stack([waveforms[0], waveforms[0]]),
            {"array": waveforms[0], "sampling_rate": SAMPLING_RATE},
            {"raw": waveforms[0], "sampling_rate": SAMPLING_RATE},
            {"path": paths[0], "bytes": None},
            {"path": None, "bytes": content},
        ]
        for form in forms:
            assert pipe(form, text=QUESTION, sampling_rate=SAMPLING_RATE) == answers[0]

    def test_rows(self, pipe, paths, answers):
        row = {"audio": paths[0], "instruction": QUESTION}
        assert pipe(row) == answers[0]
        assert pipe({"audio": paths[0], "text": QUESTION}) == answers[0]
        assert pipe(row | {"answer": "a dog", "task": "sounds"}) == answers[0]

    def test_the_instruction_of_a_row_takes_precedence_over_its_text_and_the_call(self, pipe, paths, answers):
        row = {"audio": paths[0], "instruction": QUESTION, "text": "the transcript"}
        assert pipe(row, text="Anything else?") == answers[0]

    def test_a_row_without_text_gets_the_question_of_the_call(self, pipe, paths, answers):
        assert pipe({"audio": paths[0]}, text=QUESTION) == answers[0]
        assert pipe({"audio": paths[0], "instruction": None}, text=QUESTION) == answers[0]

    def test_several_clips_in_a_row_keep_their_order(self, pipe, paths):
        both = pipe({"audio": [paths[0], paths[1]], "text": QUESTION})
        content = [{"type": "audio", "audio": path} for path in paths[:2]] + [{"type": "text", "text": QUESTION}]
        assert answer_of(both) == answer_of(pipe([{"role": "user", "content": content}]))
        assert answer_of(both) != answer_of(pipe({"audio": [paths[1], paths[0]], "text": QUESTION}))

    @pytest.mark.parametrize("key", ["audio", "path", "url"])
    def test_a_chat(self, pipe, paths, answers, key):
        chat = chat_about(paths[0], key=key)
        (output,) = pipe(chat)
        assert output == {"input_text": chat, "generated_text": answer_of(answers[0])}

    def test_a_part_with_several_keys_resolves_as_in_the_processor(self, pipe, paths, waveforms):
        parts = [
            {"type": "audio", "path": paths[0], "url": paths[1]},
            {"type": "audio", "path": paths[0], "audio": paths[2], "url": paths[1]},
            {"type": "audio", "path": paths[0], "audio": None, "url": None},
        ]
        for part, expected in zip(parts, (1, 2, 0), strict=True):
            chat = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
            (waveform,) = pipe.preprocess(chat)["audio"]
            np.testing.assert_array_equal(waveform, waveforms[expected])
            inputs = pipe.processor.apply_chat_template(chat, tokenize=True, return_dict=True)
            alone = pipe.processor.apply_chat_template(chat_about(paths[expected]), tokenize=True, return_dict=True)
            assert torch.equal(inputs["input_features"], alone["input_features"])

    def test_a_chat_as_text_a_single_message_and_a_tuple(self, pipe, paths, answers):
        chat = chat_about(paths[0])
        for form in (chat[0], tuple(chat)):
            assert answer_of(pipe(form)) == answer_of(answers[0])
        assert answer_of(pipe(text=chat)) == answer_of(answers[0])

    def test_a_chat_is_not_changed(self, pipe, paths):
        chat = chat_about(paths[0])
        pipe(chat)
        assert chat == chat_about(paths[0])

    def test_a_batch_of_chats(self, pipe, paths, answers):
        outputs = pipe([chat_about(path) for path in paths], batch_size=2)
        assert [answer_of(output) for output in outputs] == [answer_of(answer) for answer in answers]

    def test_earlier_turns_change_the_answer(self, pipe, paths):
        first = [*chat_about(paths[0]), {"role": "assistant", "content": "A dog."}]
        follow_up = {"role": "user", "content": "How often?"}
        assert answer_of(pipe([*first, follow_up])) != answer_of(pipe([follow_up]))

    def test_text_without_audio(self, pipe):
        (output,) = pipe(text="Hello")
        assert output["input_text"] == "Hello"
        assert pipe({"text": "Hello"}) == pipe({"instruction": "Hello"}) == [output]
        assert answer_of(pipe([{"role": "user", "content": "Hello"}])) == output["generated_text"]
        assert pipe(text=["Hello", "Goodbye"]) == [[output], pipe(text="Goodbye")]

    def test_the_default_instruction(self, pipe, paths):
        (output,) = pipe(paths[0])
        assert output == pipe(paths[0], text=DEFAULT_INSTRUCTION)[0]
        assert output["input_text"] == DEFAULT_INSTRUCTION == "Describe what you hear."

    def test_an_empty_instruction_is_not_the_default(self, pipe, paths):
        assert pipe(paths[0], text="")[0]["input_text"] == ""

    def test_a_question_for_all_calls(self, composite_folder, paths, answers):
        pipe = pipeline(
            "audio-text-to-text", model=str(composite_folder), device=test_device(), text=QUESTION, **LENGTH
        )
        assert pipe(paths[0]) == answers[0]
        assert pipe(paths[0], text="Who?")[0]["input_text"] == "Who?"


class TestSeveralInputs:
    def test_a_list_gives_a_list(self, pipe, paths, answers):
        assert pipe(paths, text=QUESTION) == answers
        assert pipe(tuple(paths), text=QUESTION) == answers
        assert pipe([{"audio": path, "instruction": QUESTION} for path in paths]) == answers
        assert pipe(paths[:1], text=QUESTION) == answers[:1]
        assert pipe([], text=QUESTION) == []

    def test_one_question_for_each_clip(self, pipe, paths, answers):
        outputs = pipe(paths[:2], text=[QUESTION, "Who?"])
        assert outputs == [answers[0], pipe(paths[1], text="Who?")]

    def test_several_questions_about_one_clip(self, pipe, paths, waveforms, answers):
        expected = [answers[0], pipe(paths[0], text="Who?")]
        assert pipe(paths[0], text=[QUESTION, "Who?"]) == expected
        samples = waveforms[0].tolist()
        assert pipe(samples, text=[QUESTION, "Who?"], sampling_rate=SAMPLING_RATE) == expected

    def test_a_generator_is_read_lazily(self, pipe, paths, answers):
        read = []

        def rows():
            for path in paths:
                read.append(path)
                yield path

        outputs = pipe(rows(), text=QUESTION)
        assert next(iter(outputs)) == answers[0]
        assert len(read) < 3
        assert list(pipe(rows(), text=QUESTION, batch_size=2)) == answers

    def test_a_generator_of_chats(self, pipe, paths, answers):
        outputs = list(pipe(chat_about(path) for path in paths))
        assert [answer_of(output) for output in outputs] == [answer_of(answer) for answer in answers]

    def test_other_iterables(self, pipe, paths, answers):
        assert list(pipe(map(str, paths), text=QUESTION)) == answers

    def test_a_data_set_of_rows(self, pipe, paths, answers):
        rows = datasets.Dataset.from_dict({"audio": paths, "instruction": [QUESTION] * 3, "answer": ["a", "b", "c"]})
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
        assert list(pipe(rows, batch_size=2)) == answers
        assert pipe(rows[0]) == answers[0]
        assert list(pipe(rows.to_iterable_dataset())) == answers

    def test_a_key_data_set(self, pipe, paths, answers):
        rows = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio(decode=False))
        assert list(pipe(KeyDataset(rows, "audio"), text=QUESTION, batch_size=2)) == answers

    def test_a_torch_data_set(self, pipe, paths, answers):
        class Rows(Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return {"audio": paths[index], "instruction": QUESTION}

        assert list(pipe(Rows(), batch_size=3)) == answers

    def test_worker_processes(self, pipe, paths, answers):
        assert pipe(paths, text=QUESTION, num_workers=1, batch_size=2) == answers


class TestBatching:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
    def test_a_batch_gives_the_answers_of_its_rows_alone(self, pipe, paths, answers, batch_size):
        assert pipe(paths, text=QUESTION, batch_size=batch_size) == answers

    def test_rows_with_and_without_audio_and_with_several_clips(self, pipe, paths):
        rows = [
            {"audio": paths[0], "text": "A longer question than the others have, is it?"},
            {"text": "Hello"},
            {"audio": paths, "text": QUESTION},
            {"text": "Bye"},
        ]
        alone = [pipe(row) for row in rows]
        for batch_size in (2, 3, 4):
            assert pipe(rows, batch_size=batch_size) == alone

    def test_audio_of_more_than_30_seconds(self, pipe, clip, paths, answers):
        rows = [{"array": clip(31.0), "sampling_rate": SAMPLING_RATE}, paths[0]]
        assert pipe(rows, text=QUESTION, batch_size=2) == [pipe(rows[0], text=QUESTION), answers[0]]

    def test_all_of_a_long_clip_reaches_the_model(self, pipe, clip):
        embeddings = []
        handle = pipe.model.model.multi_modal_projector.register_forward_hook(
            lambda module, args, output: embeddings.append(output)
        )
        waveform = clip(70.0)
        changed = np.concatenate([waveform[:-16_000], clip(1.0, seed=5)])
        for samples in (waveform, changed):
            (output,) = pipe({"array": samples, "sampling_rate": SAMPLING_RATE}, text=QUESTION)
            assert isinstance(output["generated_text"], str)
        handle.remove()
        # 30 s give 1500 frames, 10 s 500, and a window is 17 frames long: 88 + 88 + 30 audio tokens.
        assert [len(tokens) for tokens in embeddings] == [206, 206]
        difference = (embeddings[0] - embeddings[1]).abs().amax(-1)
        assert difference[:176].max() < 1e-5 and difference[-2:].min() > 1e-2

    def test_generate_is_called_once_for_each_batch(self, pipe, paths, monkeypatch):
        batches = []
        generate = pipe.model.generate

        def counting(**kwargs):
            batches.append(kwargs["input_ids"].shape[0])
            return generate(**kwargs)

        monkeypatch.setattr(pipe.model, "generate", counting)
        pipe(paths, text=QUESTION, batch_size=2)
        assert batches == [2, 1]


class TestGeneration:
    def test_generation_arguments_of_the_call(self, pipe, paths, answers):
        short = pipe(paths[0], text=QUESTION, max_new_tokens=2)
        assert answer_of(short) != answer_of(answers[0])
        assert pipe(paths[0], text=QUESTION, generate_kwargs={"max_new_tokens": 2}) == short
        assert pipe(paths[0], text=QUESTION, generation_config=GenerationConfig(max_new_tokens=2)) == short

    def test_generation_arguments_of_the_pipeline(self, composite_folder, paths, answers):
        pipe = pipeline(
            "audio-text-to-text", model=str(composite_folder), device=test_device(), generate_kwargs=LENGTH
        )
        assert pipe(paths[0], text=QUESTION) == answers[0]

    def test_an_argument_given_twice_is_refused(self, pipe, paths):
        with pytest.raises(ValueError, match=r"\['max_new_tokens'\] given twice"):
            pipe(paths[0], max_new_tokens=2, generate_kwargs={"max_new_tokens": 3})

    def test_at_most_256_tokens_by_default(self, composite_folder):
        pipe = pipeline("audio-text-to-text", model=str(composite_folder), device=test_device())
        assert pipe._prepare_generate_kwargs({})["max_new_tokens"] == 256
        pipe.model.generation_config.max_new_tokens = 3
        assert "max_new_tokens" not in pipe._prepare_generate_kwargs({})

    def test_the_padding_token_defaults_to_the_tokenizers(self, composite_folder):
        pipe = pipeline("audio-text-to-text", model=str(composite_folder), device=test_device())
        pipe.model.generation_config.pad_token_id = None
        assert pipe._prepare_generate_kwargs({})["pad_token_id"] == pipe.tokenizer.pad_token_id

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_several_sequences_of_one_input(self, pipe, paths, batch_size):
        outputs = pipe(paths, text=QUESTION, num_beams=3, num_return_sequences=2, batch_size=batch_size)
        assert [len(output) for output in outputs] == [2, 2, 2]
        best = pipe(paths[0], text=QUESTION, num_beams=3)
        assert outputs[0][0] == best[0] and outputs[0][0] != outputs[0][1]

    def test_stop_strings(self, pipe, paths):
        full = answer_of(pipe(paths[0], text=QUESTION, max_new_tokens=30))
        stop = next(character for character in full if character.isascii() and character.isprintable())
        stopped = answer_of(pipe(paths[0], text=QUESTION, max_new_tokens=30, stop_strings=[stop]))
        assert stopped == full[: full.index(stop) + 1]

    def test_tokens_are_streamed(self, pipe, paths, answers, capsys):
        pipe(
            paths[0], text=QUESTION, streamer=TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
        )
        assert capsys.readouterr().out.strip("\n") == answer_of(answers[0]).strip("\n")

    def test_tokens_are_streamed_to_another_thread(self, pipe, paths, answers):
        streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=30)
        thread = threading.Thread(target=pipe, args=(paths[0],), kwargs={"text": QUESTION, "streamer": streamer})
        thread.start()
        assert "".join(streamer) == answer_of(answers[0])
        thread.join()

    def test_tokens_of_an_adapter_are_streamed(self, make_adapted, composite_folder, paths, capsys):
        processor = AutoProcessor.from_pretrained(composite_folder)
        model = make_adapted("listen")
        adapted = pipeline("audio-text-to-text", model=model, processor=processor, device=test_device(), **LENGTH)
        streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        outputs = adapted(paths[0], text=QUESTION, streamer=streamer)
        assert capsys.readouterr().out.strip("\n") == answer_of(outputs).strip("\n")

    def test_unknown_arguments_are_refused(self, pipe, paths):
        with pytest.raises(ValueError, match="max_tokens"):
            pipe(paths[0], text=QUESTION, max_tokens=3)


class TestFullText:
    def test_the_whole_chat_is_returned(self, pipe, paths, answers):
        (output,) = pipe(chat_about(paths[0]), return_full_text=True)
        answer = {"role": "assistant", "content": answer_of(answers[0])}
        assert output["generated_text"] == [*chat_about(paths[0]), answer]
        (output,) = pipe(paths[0], text=QUESTION, return_full_text=True)
        assert output["generated_text"] == [*chat_about(paths[0]), answer]

    def test_the_returned_chat_can_be_continued(self, pipe, paths):
        (output,) = pipe(chat_about(paths[0]), return_full_text=True)
        again = [*output["generated_text"], {"role": "user", "content": "Sure?"}]
        assert isinstance(answer_of(pipe(again)), str)

    @pytest.mark.parametrize("content", ["I hear", [{"type": "text", "text": "I hear"}]])
    def test_an_assistant_message_at_the_end_is_continued(self, pipe, paths, content):
        chat = [*chat_about(paths[0]), {"role": "assistant", "content": content}]
        (new,) = pipe(chat)
        (full,) = pipe(chat, return_full_text=True)
        continued = "I hear" + new["generated_text"]
        expected = continued if isinstance(content, str) else [{"type": "text", "text": continued}]
        assert full["generated_text"] == [*chat[:-1], {"role": "assistant", "content": expected}]
        (fresh,) = pipe(chat, continue_final_message=False, return_full_text=True)
        assert fresh["generated_text"][:-1] == chat

    def test_variables_reach_the_chat_template(self, composite_folder, paths, answers):
        pipe = pipeline("audio-text-to-text", model=str(composite_folder), device=test_device(), **LENGTH)
        pipe.processor.chat_template += "{% if formal %}Sir,{% endif %}"
        assert pipe(paths[0], text=QUESTION) == answers[0]
        assert pipe(paths[0], text=QUESTION, chat_template_kwargs={"formal": True}) != answers[0]


class TestModelForms:
    def test_a_model_object_with_its_processor(self, composite_folder, paths, answers):
        model = AutoModelForMultimodalLM.from_pretrained(composite_folder)
        for processor in (AutoProcessor.from_pretrained(composite_folder), str(composite_folder)):
            pipe = pipeline("audio-text-to-text", model=model, processor=processor, device=test_device(), **LENGTH)
            assert isinstance(pipe, AudioTextToTextPipeline)
            assert pipe(paths[0], text=QUESTION) == answers[0]

    @pytest.mark.parametrize("method", ["listen", "lora"])
    def test_an_adapter_gives_the_same_answers_as_object_and_as_folder(
        self, make_adapted, method, composite_folder, tmp_path, paths, answers
    ):
        model = make_adapted(method)
        model.save_pretrained(tmp_path)
        processor = AutoProcessor.from_pretrained(composite_folder)
        pipe = pipeline("audio-text-to-text", model=model, processor=processor, device=test_device(), **LENGTH)
        expected = pipe(paths, text=QUESTION)
        assert expected != answers, "the test needs an adapter that changes the answers"
        assert pipe(paths, text=QUESTION, batch_size=3) == expected

        from_folder = pipeline("audio-text-to-text", model=str(tmp_path), device=test_device(), **LENGTH)
        assert from_folder(paths, text=QUESTION) == expected
        assert from_folder(paths, text=QUESTION, batch_size=3) == expected

        base = AutoModelForMultimodalLM.from_pretrained(composite_folder)
        loaded = PeftModel.from_pretrained(base, tmp_path).eval()
        pipe = pipeline("audio-text-to-text", model=loaded, processor=processor, device=test_device(), **LENGTH)
        assert pipe(paths, text=QUESTION) == expected

    def test_the_base_of_an_adapter_may_lack_its_frozen_parts(self, published_parts, tmp_path, paths):
        processor = AudioListenProcessor.from_sub_models_pretrained(**published_parts)
        model = AudioListenForCausalLM.from_sub_models_pretrained(**published_parts, qformer_config=QFORMER)
        model.save_pretrained(tmp_path / "base", save_frozen=False)
        processor.save_pretrained(tmp_path / "base")
        base = AudioListenForCausalLM.from_pretrained(tmp_path / "base")
        config = ListenConfig(pool_size=12, prompt_length=3, init_weights=False)
        adapted = get_peft_model(base, config).eval()
        adapted.save_pretrained(tmp_path / "adapter")
        pipe = pipeline("audio-text-to-text", model=adapted, processor=processor, device=test_device(), **LENGTH)
        from_folder = pipeline("audio-text-to-text", model=str(tmp_path / "adapter"), device=test_device(), **LENGTH)
        assert from_folder(paths, text=QUESTION) == pipe(paths, text=QUESTION)

    def test_an_audio_model_of_transformers_itself(self, make_tokenizer, whisper_config, paths, tmp_path):
        tokenizer = make_tokenizer(additional_special_tokens=["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
        config = Qwen2AudioConfig(
            audio_config={
                "d_model": 16,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 16,
                "num_mel_bins": 80,
            },
            text_config=LLM_CONFIGS["qwen2"]().to_dict() | {"vocab_size": len(tokenizer)},
            audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        )
        torch.manual_seed(0)
        Qwen2AudioForConditionalGeneration(config).save_pretrained(tmp_path)
        template = audio_chat_template("<|audio_bos|><|AUDIO|><|audio_eos|>")
        Qwen2AudioProcessor(WhisperFeatureExtractor(), tokenizer, chat_template=template).save_pretrained(tmp_path)
        pipe = pipeline("audio-text-to-text", model=str(tmp_path), device=test_device(), **LENGTH)
        alone = [pipe(path, text=QUESTION) for path in paths]
        assert [len(answer) for answer in alone] == [1, 1, 1]
        assert pipe(paths, text=QUESTION, batch_size=3) == alone

    def test_an_adapter_folder_generates_in_all_modes(self, make_adapted, composite_folder, tmp_path, paths):
        model = make_adapted("listen")
        model.save_pretrained(tmp_path)
        processor = AutoProcessor.from_pretrained(composite_folder)
        with_object = pipeline("audio-text-to-text", model=model, processor=processor, device=test_device(), **LENGTH)
        from_folder = pipeline("audio-text-to-text", model=str(tmp_path), device=test_device(), **LENGTH)
        for arguments in ({"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}):
            expected = with_object(paths, text=QUESTION, batch_size=3, **arguments)
            assert from_folder(paths, text=QUESTION, batch_size=3, **arguments) == expected

    def test_half_precision(self, composite_folder, paths):
        pipe = pipeline(
            "audio-text-to-text", model=str(composite_folder), device=test_device(), dtype="bfloat16", **LENGTH
        )
        assert pipe.dtype == torch.bfloat16
        assert isinstance(answer_of(pipe(paths[0], text=QUESTION)), str)

    def test_a_saved_pipeline_can_be_loaded(self, pipe, paths, answers, tmp_path):
        pipe.save_pretrained(tmp_path)
        again = pipeline("audio-text-to-text", model=str(tmp_path), device=test_device(), **LENGTH)
        assert again(paths[0], text=QUESTION) == answers[0]


class TestRefusals:
    def test_neither_audio_nor_text(self, pipe):
        with pytest.raises(ValueError, match="neither audio nor text"):
            pipe()
        with pytest.raises(ValueError, match="has neither audio nor text"):
            pipe({"audio": None})

    def test_different_numbers_of_questions_and_clips(self, pipe, paths):
        with pytest.raises(ValueError, match="Got 3 clips and 2 questions"):
            pipe(paths, text=["Who?", "What?"])

    def test_a_list_of_questions_for_a_generator(self, pipe, paths):
        with pytest.raises(ValueError, match="A list of questions needs a list of clips"):
            pipe((path for path in paths), text=["Who?", "What?"])

    def test_a_chat_as_text_with_audio(self, pipe, paths):
        with pytest.raises(ValueError, match=r"The audio of a chat belongs in its messages"):
            pipe(paths[0], text=chat_about(paths[0]))

    def test_a_question_that_is_not_a_string(self, pipe, paths):
        with pytest.raises(ValueError, match="The question must be a string, got a int: 3"):
            pipe({"audio": paths[0], "instruction": 3})

    def test_an_audio_part_without_audio(self, pipe):
        with pytest.raises(ValueError, match="has an audio part without audio"):
            pipe([{"role": "user", "content": [{"type": "audio"}]}])

    def test_an_audio_token_in_the_question(self, pipe, paths):
        with pytest.raises(ValueError, match=r"The chat has 2 audio tokens <\|audio\|> for 1 clips"):
            pipe(paths[0], text=f"What is {pipe.processor.audio_token}?")

    def test_a_chat_does_not_get_the_clip_of_another_one_in_its_batch(self, pipe, paths, monkeypatch):
        token = pipe.processor.audio_token
        # One audio token too many in the first chat, and one too few in the second: as many as clips in the batch.
        monkeypatch.setattr(pipe.processor, "chat_template", "{{ messages[0].content[-1].text }}")
        rows = [{"text": f"What is {token}?"}, {"audio": paths[0], "text": "What?"}]
        for batch in (rows, rows[::-1]):
            with pytest.raises(ValueError, match=r"The chat has [01] audio tokens <\|audio\|> for [01] clips"):
                pipe(batch, batch_size=2)

    def test_an_unknown_sampling_rate(self, pipe, waveforms):
        with pytest.raises(ValueError, match="the sampling rate of these samples is unknown"):
            pipe(waveforms[0], text=QUESTION)

    def test_files_that_cannot_be_read(self, pipe, server, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"missing\.wav: no such audio file"):
            pipe(str(tmp_path / "missing.wav"))
        with pytest.raises(OSError, match=r"none\.wav: the server answered with HTTP status 404"):
            pipe(f"{server}/none.wav")
        with pytest.raises(IsADirectoryError):
            pipe(tmp_path)

    def test_the_message_names_the_invalid_file_of_a_batch(self, pipe, paths, tmp_path):
        damaged = tmp_path / "damaged.wav"
        soundfile.write(damaged, np.array([0.0, np.nan], "f4"), SAMPLING_RATE, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"damaged\.wav: 1 of 2 audio samples are NaN"):
            pipe([*paths, str(damaged)], batch_size=4)

    def test_a_model_object_without_processor(self, composite_folder):
        model = AutoModelForMultimodalLM.from_pretrained(composite_folder)
        with pytest.raises(Exception, match="Please provide a processor instance"):
            pipeline("audio-text-to-text", model=model)
        with pytest.raises(ValueError, match="needs a processor"):
            AudioTextToTextPipeline(model)
