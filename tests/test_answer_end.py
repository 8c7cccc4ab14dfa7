"""
The end of an answer as it is trained is the end as it is generated: in the collator, the processor, the pipeline and the
generation configuration, for chat templates and tokenizers of many kinds.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.training import AudioListenCollator, ListenCallback
from tests.small_models import QFORMER, SIZES, make_whisper_config


ANSWER = "the quick brown fox"
ROW = {"audio": None, "instruction": "What is said?", "answer": ANSWER, "task": "text"}
CHAT = [{"role": "user", "content": [{"type": "text", "text": ROW["instruction"]}]}]

START = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
PROMPT = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURNS = START + "{{ m['content'] + '<|im_end|>\n' }}" + PROMPT
LINES = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + 'END' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def with_block(template: str, block: str) -> str:
    """Writes a block before every answer, but not in the generation prompt."""
    content = "{{ m['content']"
    return template.replace(content, "{% if m['role'] == 'assistant' %}{{ '" + block + "' }}{% endif %}" + content)


@dataclass
class Case:
    """A chat template and a tokenizer, and the token that must end answers."""

    template: str | None
    end: str
    eos: str = "<|endoftext|>"
    adds: str = "$A"
    ordinary: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    variables: dict[str, Any] = field(default_factory=dict)


CASES = {
    "the tokenizer's end token": Case(TURNS, end="<|im_end|>", eos="<|im_end|>"),
    "a turn token beside an end of text": Case(TURNS, end="<|im_end|>"),
    "a turn token that is not special": Case(
        TURNS.replace("<|im_end|>", "<end_of_turn>"), end="<end_of_turn>", added=("<end_of_turn>",)
    ),
    "a turn token before the end of text": Case(
        START + "{{ m['content'] + '<|im_end|>\n' }}{% if loop.last and m['role'] == 'assistant' %}"
        "{{ '<|endoftext|>' }}{% endif %}" + PROMPT,
        end="<|im_end|>",
    ),
    "an end without a line break": Case(LINES.replace("END", "<|im_end|>"), end="<|im_end|>"),
    "no end token": Case(LINES.replace("END", "\n"), end="<|endoftext|>"),
    "nothing at the end": Case(
        LINES.replace("'END'", "('\n' if m['role'] == 'user' or not loop.last else '')"), end="<|endoftext|>"
    ),
    "an end token between turns only": Case(
        LINES.replace("'END'", "('<|im_end|>' if m['role'] == 'user' or not loop.last else '')"), end="<|endoftext|>"
    ),
    "a turn token that the vocabulary lacks": Case(LINES.replace("END", "<|eot|>\n"), end="<|endoftext|>"),
    "SALMONN's format": Case(None, end="<|endoftext|>"),
    "an empty think block": Case(with_block(TURNS, "<think>\n\n</think>\n\n"), end="<|im_end|>", eos="<|im_end|>"),
    "an empty think block of added tokens": Case(
        with_block(TURNS, "<think></think>"), end="<|im_end|>", added=("<think>", "</think>")
    ),
    "an empty block in brackets": Case(with_block(TURNS, "[THINK][/THINK]"), end="<|im_end|>"),
    "an empty block of another name": Case(with_block(TURNS, "<reasoning> </reasoning>\n"), end="<|im_end|>"),
    "a tokenizer that adds its end": Case(TURNS, end="<|im_end|>", adds="$A <|endoftext|>"),
    "a tokenizer that adds the turn's end": Case(TURNS, end="<|im_end|>", eos="<|im_end|>", adds="$A <|im_end|>"),
    "a tokenizer that adds both ends": Case(TURNS, end="<|im_end|>", adds="<s> $A <|endoftext|>"),
    "a tokenizer that adds a separator": Case(
        LINES.replace("END", "\n"), end="<|endoftext|>", adds="<s> $A <|im_start|>"
    ),
    "a tokenizer that adds its end in SALMONN's format": Case(None, end="<|endoftext|>", adds="<s> $A <|endoftext|>"),
}
VOCAB_SIZE = 340


def make_tokenizer(case: Case) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<s>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([f"user assistant {ROW['instruction']} {ANSWER}"] * 4, trainer)
    ids = [(token, backend.token_to_id(token)) for token in special]
    backend.post_processor = processors.TemplateProcessing(single=case.adds, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=case.eos, pad_token="<pad>", chat_template=case.template
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]})
    tokenizer.add_tokens([AddedToken(token, special=False) for token in case.added])
    return tokenizer


def make_processor(case: Case) -> AudioListenProcessor:
    return AudioListenProcessor.from_sub_models_pretrained(
        speech=WhisperFeatureExtractor(), llm=make_tokenizer(case), sound=False
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> AudioListenForCausalLM:
    """An audio model whose language model was published to stop at the tokenizer's end token."""
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    return AudioListenForCausalLM.from_sub_models_pretrained(
        speech=WhisperForConditionalGeneration(make_whisper_config()),
        llm=LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, **SIZES, **ids)),
        tokenizer=tokenizer,
        qformer_config=QFORMER,
        freeze_language_model=False,
    )


def supervised(batch: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The prompt and the supervised tokens of the only row."""
    labels = batch["labels"][0]
    return batch["input_ids"][0][labels == -100].tolist(), labels[labels != -100].tolist()


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def parts(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = make_processor(case)
        return make_model(make_tokenizer(case)), processor, AudioListenCollator(processor)


def test_exactly_the_answer_and_its_end_are_trained(case, parts):
    _, processor, collator = parts
    _, answer = supervised(collator([ROW]))
    end = processor.tokenizer.convert_tokens_to_ids(case.end)
    assert answer[-1] == end and answer.count(end) == 1
    text = processor.tokenizer.decode(answer[:-1])
    assert text.strip().removesuffix("<|eot|>") == ANSWER


def test_the_prompt_is_the_same_in_training_processor_and_pipeline(parts):
    model, processor, collator = parts
    prompt, _ = supervised(collator([ROW]))
    inputs = processor.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert inputs["input_ids"][0].tolist() == prompt
    text = processor.apply_chat_template(CHAT, add_generation_prompt=True)
    assert processor(text=text)["input_ids"][0].tolist() == prompt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = pipeline("audio-text-to-text", model=model, processor=processor)
    collated = pipe.collate([pipe.preprocess({"text": ROW["instruction"]})])["model_inputs"]
    assert collated["input_ids"][0].tolist() == prompt
    ends = {processor.tokenizer.convert_tokens_to_ids(end) for end in ("<|im_end|>", "<|endoftext|>")}
    assert prompt[-1] not in ends
    assert prompt.count(processor.tokenizer.bos_token_id) <= 1


def test_generation_stops_at_the_end_that_was_trained(case, parts, tmp_path):
    model, processor, collator = parts
    batch = collator([ROW])
    prompt, answer = supervised(batch)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(40):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    model.eval()
    inputs = processor.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
    output = model.generate(**inputs, max_new_tokens=40)
    assert output[0, len(prompt) :].tolist() == answer
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a composite that was put together stops where it should
        AudioListenProcessor.from_pretrained(tmp_path)
        pipe = pipeline("audio-text-to-text", model=str(tmp_path), max_new_tokens=40)
    (output,) = pipe(text=ROW["instruction"])
    assert output["generated_text"].strip().removesuffix("<|eot|>") == ANSWER


DIFFERENT = [name for name, case in CASES.items() if case.end != case.eos]


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_language_model_that_stops_elsewhere_gives_a_warning_that_names_both(name):
    case = CASES[name]
    tokenizer = make_tokenizer(case)
    message = rf"ends answers with '{case.end}', but generation stops at '{case.eos}'".replace("|", r"\|")
    with pytest.warns(UserWarning, match=message):
        model = make_model(tokenizer)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (case.eos, case.end)]
    assert model.generation_config.eos_token_id == ends


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_model_that_was_saved_before_is_mended_by_the_pipeline(name, tmp_path):
    case = CASES[name]
    tokenizer, processor = make_tokenizer(case), make_processor(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_model(tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    both = rf"'{case.end}', but generation stops at '{case.eos}'".replace("|", r"\|")
    with pytest.warns(UserWarning, match=both + ".*eos_token_id"):
        AudioListenProcessor.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=both + ". The pipeline stops"):
        pipe = pipeline("audio-text-to-text", model=model, processor=processor)
    end = tokenizer.convert_tokens_to_ids(case.end)
    steps = []

    def write_the_end(input_ids, scores):
        steps.append(1)
        return torch.full_like(scores, -1e9).index_fill_(-1, torch.tensor([end if len(steps) == 3 else 100]), 0.0)

    pipe(text="What?", max_new_tokens=9, logits_processor=[write_the_end])
    assert len(steps) == 3
    steps.clear()
    pipe(text="What?", max_new_tokens=9, logits_processor=[write_the_end], eos_token_id=tokenizer.eos_token_id)
    assert len(steps) == 9  # the caller's own word
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("name", DIFFERENT)
def test_training_with_a_template_of_another_end_makes_generation_stop_there(name, tmp_path):
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make_model(make_tokenizer(case)), ListenConfig(pool_size=4, prompt_length=2))
    model.generation_config.eos_token_id = 4  # as if the template had been set later
    args = TrainingArguments(
        str(tmp_path), max_steps=1, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no"
    )
    collator = AudioListenCollator(make_processor(case))
    trainer = Trainer(model, args, train_dataset=[ROW] * 8, data_collator=collator, callbacks=[ListenCallback()])
    with pytest.warns(UserWarning, match=r"but generation stops at '<\|endoftext\|>'. It was added"):
        trainer.train()
    assert model.get_base_model().generation_config.eos_token_id == [4, collator.answer_end.token_id]


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, "a loop") for name in DIFFERENT), (DIFFERENT[0], "Trainer"), (DIFFERENT[0], "Trainer and LoRA")],
)
def test_training_without_the_callback_warns_of_a_template_that_was_set_later(name, way, tmp_path):
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_model(make_tokenizer(case))
    model.generation_config.eos_token_id = 4  # as if the template had been set later
    collator = AudioListenCollator(make_processor(case))
    base = model
    if way == "Trainer and LoRA":
        modules = ["multi_modal_projector"]
        model = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=modules))

    def train():
        if way == "a loop":
            model.train()(**collator([ROW])).loss.backward()
            return
        args = TrainingArguments(
            str(tmp_path), max_steps=2, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no"
        )
        Trainer(model, args, train_dataset=[ROW] * 8, data_collator=collator).train()

    end = collator.answer_end.token_id
    message = rf"The last label of this batch is the token {end}, but generation stops at 4, which .*check_generation"
    with pytest.warns(UserWarning, match=message) as caught:
        train()
    assert len([warning for warning in caught if "The last label" in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train()(**collator([ROW]))  # once
    with pytest.warns(UserWarning, match=f"{collator.answer_end.token}.*but generation stops at".replace("|", r"\|")):
        collator.check_generation(model)
    assert base.generation_config.eos_token_id == [4, end]


@pytest.mark.parametrize("labels", ["with an end", "with one of several ends", "none", "an evaluation"])
def test_labels_that_teach_the_end_or_nothing_give_no_warning(labels):
    case = CASES["the tokenizer's end token"]
    model, tokenizer = make_model(make_tokenizer(case)), make_tokenizer(case)
    batch = AudioListenCollator(make_processor(case))([ROW, ROW])
    if labels == "with one of several ends":
        model.generation_config.eos_token_id = [4, tokenizer.eos_token_id]
    elif labels == "none":
        batch["labels"][:] = batch["shift_labels"][:] = -100
    elif labels == "an evaluation":
        model.generation_config.eos_token_id = 4
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train(labels != "an evaluation")(**batch)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.end == case.eos])
def test_parts_that_agree_give_no_warning(name, recwarn):
    case = CASES[name]
    processor = make_processor(case)
    model = make_model(make_tokenizer(case))
    pipeline("audio-text-to-text", model=model, processor=processor)
    assert not [w for w in recwarn if "generation stops" in str(w.message)]
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["no end token", "an end token between turns only", "nothing at the end"])
def test_a_template_without_an_end_token_gives_a_warning(name):
    with pytest.warns(UserWarning, match=r"contains no end token.*'<\|endoftext\|>' is added after the last answer"):
        AudioListenCollator(make_processor(CASES[name]))


@pytest.mark.parametrize("template", [CASES["no end token"].template, None])
def test_without_any_end_token_the_collator_refuses(template):
    processor = make_processor(Case(template, end="", eos="<|endoftext|>"))
    processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="writes no end token after an answer, and the tokenizer has no `eos_token`"):
        AudioListenCollator(processor)


def test_an_answer_keeps_a_reasoning_block_of_its_own():
    processor = make_processor(Case(TURNS, end="<|im_end|>", eos="<|im_end|>"))
    answer = "<think></think> fox"
    _, trained = supervised(AudioListenCollator(processor)([ROW | {"answer": answer}]))
    assert processor.tokenizer.decode(trained) == answer + "<|im_end|>"


BLOCK = "<think>\n\n</think>\n\n"
THINKING = with_block(TURNS, BLOCK).removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and not enable_thinking %}{{ '" + BLOCK + "' }}{% endif %}{% endif %}"
)


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_variables_of_the_template_are_those_of_generation(variables):
    processor = make_processor(Case(THINKING, end="<|im_end|>", eos="<|im_end|>"))
    collator = AudioListenCollator(processor, chat_template_kwargs=variables)
    prompt, answer = supervised(collator([ROW]))
    inputs = processor.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=True, **variables
    )
    assert inputs["input_ids"][0].tolist() == prompt
    assert processor.tokenizer.decode(answer) == ANSWER + "<|im_end|>"


@pytest.mark.parametrize("adds", ["$A", "$A <|endoftext|>", "<s> $A <|endoftext|>"])
def test_the_mask_of_the_assistants_tokens_covers_the_answer(adds):
    template = TURNS.replace(
        "{{ m['content'] + '<|im_end|>\n' }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"
    )
    processor = make_processor(Case(template, end="", adds=adds))
    chat = [{"role": "assistant", "content": ANSWER}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    marked = inputs["input_ids"][0][torch.as_tensor(inputs["assistant_masks"])[0].bool()]
    assert processor.tokenizer.decode(marked) == ANSWER


TURNS_OF_A_CHAT = [
    {"role": "user", "content": "What is said?"},
    {"role": "assistant", "content": "the quick"},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "brown fox "},
]


def supervised_runs(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """The supervised runs of the only row, each with what precedes it."""
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    begins = [i for i in range(1, len(labels)) if labels[i] != -100 and labels[i - 1] == -100]
    ends = [next((i for i in range(begin, len(labels)) if labels[i] == -100), len(labels)) for begin in begins]
    return [(ids[:begin], ids[begin:end]) for begin, end in zip(begins, ends, strict=True)]


def test_every_turn_ends_as_generation_ends_it(case, parts):
    _, processor, collator = parts
    tokenizer = processor.tokenizer
    runs = supervised_runs(collator([{"messages": TURNS_OF_A_CHAT}]))
    end = tokenizer.convert_tokens_to_ids(case.end)
    assert len(runs) == 2
    for turn, (prompt, answer) in zip((1, 3), runs, strict=True):
        expected = processor.apply_chat_template(
            TURNS_OF_A_CHAT[:turn], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        expected = expected["input_ids"][0].tolist()
        if not any(block in tokenizer.decode(expected) for block in ("</think>", "[/THINK]", "</reasoning>")):
            assert tokenizer.decode(prompt) == tokenizer.decode(expected)
            # A prompt that ends with a space is tokenized in another way if its answer is in the history.
            assert prompt == expected or (turn == 3 and tokenizer.decode(prompt).endswith(" "))
        # An end token that the template does not write is added to the last answer only, as the history of generation.
        is_ended = collator.answer_end.is_rendered or turn == 3
        assert answer.count(end) == is_ended and (answer[-1] == end) == is_ended
        text = tokenizer.decode([token for token in answer if token != end])
        assert text.removesuffix("<|eot|>").strip() == TURNS_OF_A_CHAT[turn]["content"].strip()
        assert not {"<think>", "</think>", "[THINK]", "<reasoning>"} & set(text.split())


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
@pytest.mark.parametrize("trained", ["all", "last"])
def test_an_empty_block_that_a_template_writes_in_the_prompt_or_before_the_last_answer(variables, trained):
    # As published reasoning models do: the block is in the prompt if reasoning is switched off, and before a last answer.
    block = "{% if m['role'] == 'assistant' and loop.last %}{{ '" + BLOCK + "' }}{% endif %}"
    template = THINKING.replace("{% if m['role'] == 'assistant' %}{{ '" + BLOCK + "' }}{% endif %}", block)
    processor = make_processor(Case(template, end="<|im_end|>", eos="<|im_end|>"))
    collator = AudioListenCollator(processor, chat_template_kwargs=variables, trained_answers=trained)
    runs = supervised_runs(collator([{"messages": TURNS_OF_A_CHAT}]))
    decoded = [processor.tokenizer.decode(answer) for _, answer in runs]
    assert decoded == ["the quick<|im_end|>", "brown fox <|im_end|>"][-len(runs) :]
    assert len(runs) == (2 if trained == "all" else 1)
    expected = processor.apply_chat_template(
        TURNS_OF_A_CHAT[:3], add_generation_prompt=True, tokenize=True, return_dict=True, **variables
    )
    assert runs[-1][0] == expected["input_ids"][0].tolist()


def test_a_block_that_only_the_generation_prompt_has_is_part_of_the_prompt():
    template = TURNS.removesuffix("{% endif %}") + "{{ '" + BLOCK + "' }}{% endif %}"
    processor = make_processor(Case(template, end="<|im_end|>", eos="<|im_end|>"))
    prompt, answer = supervised(AudioListenCollator(processor)([ROW]))
    inputs = processor.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert prompt == inputs["input_ids"][0].tolist()
    assert processor.tokenizer.decode(answer) == ANSWER + "<|im_end|>"


def test_an_answer_that_a_template_shortens_in_the_history_is_refused_or_trained_last():
    template = TURNS.replace("m['content'] +", "(m['content'] if loop.last else m['content'].split('</think>')[-1]) +")
    processor = make_processor(Case(template, end="<|im_end|>", eos="<|im_end|>"))
    answer = "<think>Hm.</think>the quick"
    chat = [TURNS_OF_A_CHAT[0], {"role": "assistant", "content": answer}, *TURNS_OF_A_CHAT[2:]]
    message = r"renders the answer of message 1 in another form .*trained_answers=\"last\""
    with pytest.raises(ValueError, match="Row 0 of the batch: .*" + message):
        AudioListenCollator(processor)([{"messages": chat}])
    _, trained = supervised(AudioListenCollator(processor, trained_answers="last")([{"messages": chat}]))
    assert processor.tokenizer.decode(trained) == "brown fox <|im_end|>"
    _, trained = supervised(AudioListenCollator(processor)([{"messages": chat[:2]}]))
    assert processor.tokenizer.decode(trained) == answer + "<|im_end|>"


def test_answers_without_an_end_in_the_history_are_refused_or_trained_last():
    template = TURNS.replace("'<|im_end|>\n'", "('<|im_end|>\n' if m['role'] == 'user' or loop.last else '\n')")
    assert template != TURNS
    processor = make_processor(Case(template, end="<|im_end|>", eos="<|im_end|>"))
    message = r"writes '<\|im_end\|>' after the last answer, but not after that of message 1.*trained_answers=\"last\""
    with pytest.raises(ValueError, match=message):
        AudioListenCollator(processor)([{"messages": TURNS_OF_A_CHAT}])
    _, trained = supervised(AudioListenCollator(processor, trained_answers="last")([{"messages": TURNS_OF_A_CHAT}]))
    assert processor.tokenizer.decode(trained) == "brown fox <|im_end|>"
