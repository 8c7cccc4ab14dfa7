"""
Rows of several clips, several turns and a system prompt: every form of a row gives the batch and the answer of the others, and
invalid rows are refused by name.
"""

import datasets
import pytest
import torch
from transformers import pipeline

from peft_listen import record_selections
from peft_listen.evaluation.collated_answers import answer_batches
from peft_listen.training import AudioListenCollator, FeatureCache
from tests import small_models


SYSTEM, QUESTION, ANSWER = "Be brief.", "Which is louder?", "the second"


@pytest.fixture(scope="module")
def model():
    return small_models.make_chat_model().eval()


def audio(clip):
    return {"type": "audio", "audio": clip}


def text(content):
    return {"type": "text", "text": content}


@pytest.fixture
def two_turns(clips):
    """A conversation about three clips, with places of the clips in their questions."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [audio(clips[0]), text("Or "), audio(clips[1]), text(QUESTION)]},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": [text("And this one? "), audio(clips[2])]},
        {"role": "assistant", "content": "it is the loudest"},
    ]


def supervised_runs(batch, row=0):
    """The supervised runs of a row, each with what precedes it, without padding."""
    ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
    first = int(batch["attention_mask"][row].argmax())
    runs, run = [], []
    for position, label in enumerate([*labels, -100]):
        if label != -100:
            assert label == ids[position]
            run.append(label)
        elif run:
            runs.append((ids[first : position - len(run)], run))
            run = []
    return runs


def generation_prompt(processor, messages):
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return inputs["input_ids"][0].tolist()


FORMS = ["messages", "places", "in front", "text parts", "a table", "fields"]


def forms_of_one_row(clips):
    question = {"role": "user", "content": [audio(clips[0]), audio(clips[1]), text(QUESTION)]}
    places = {"role": "user", "content": [{"type": "audio"}, {"type": "audio"}, text(QUESTION)]}
    system, answer = {"role": "system", "content": SYSTEM}, {"role": "assistant", "content": ANSWER}
    fields = {"audio": list(clips[:2]), "system": SYSTEM, "instruction": QUESTION, "answer": ANSWER}
    in_parts = [
        {**system, "content": [text(SYSTEM)]},
        question,
        {**answer, "content": [text(ANSWER[:4]), text(ANSWER[4:])]},
    ]
    return {
        "messages": {"messages": [system, question, answer]},
        "places": {"messages": [system, places, answer], "audio": clips[:2], "instruction": None, "answer": ANSWER},
        "in front": {"messages": [system, {"role": "user", "content": QUESTION}, answer], "audio": clips[:2]},
        "text parts": {"messages": in_parts},
        # All rows and parts of a table have the same columns.
        "a table": datasets.Dataset.from_list([{"messages": in_parts, "instruction": None}])[0],
        "fields": {**fields, "messages": None},
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_row_gives_the_same_batch_and_answer(processor, model, clips, form):
    row = forms_of_one_row(clips)[form]
    expected = AudioListenCollator(processor)([forms_of_one_row(clips)["messages"]])
    batch = AudioListenCollator(processor)([row])
    assert batch.keys() == expected.keys()
    for name, value in batch.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[name])), name
    chat = forms_of_one_row(clips)["messages"]["messages"][:2]
    ((prompt, answer),) = supervised_runs(batch)
    assert prompt == generation_prompt(processor, chat)
    assert processor.tokenizer.decode(answer) == ANSWER + "<|im_end|>"
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=6)
    assert pipe(row)[0]["generated_text"] == pipe(chat)[0]["generated_text"]


def test_each_answer_of_a_conversation_is_trained_after_its_generation_prompt(processor, two_turns):
    batch = AudioListenCollator(processor)([{"messages": two_turns}])
    runs = supervised_runs(batch)
    assert len(runs) == 2
    for turn, (prompt, answer) in zip((2, 4), runs, strict=True):
        assert prompt == generation_prompt(processor, two_turns[:turn])
        assert processor.tokenizer.decode(answer) == two_turns[turn]["content"] + "<|im_end|>"
    last = AudioListenCollator(processor, trained_answers="last")([{"messages": two_turns}])
    assert torch.equal(last["input_ids"], batch["input_ids"])
    assert supervised_runs(last) == runs[1:]


@pytest.mark.parametrize("is_cached", [False, True])
def test_rows_of_all_kinds_can_be_in_one_batch(processor, model, clips, two_turns, tmp_path, is_cached):
    cache = None
    if is_cached:
        cache = FeatureCache(tmp_path, model)
        cache.build(model, processor, clips)
    collator = AudioListenCollator(processor, feature_cache=cache)
    rows = [
        {"messages": two_turns},
        {"messages": [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "yes"}]},
        {"audio": clips[3], "instruction": "How long?", "answer": "a second"},
        {"instruction": "Say no.", "answer": "no"},
        {"audio": [], "instruction": "Say so.", "answer": "so", "system": SYSTEM},
        {"audio": tuple(clips[:2]), "instruction": QUESTION, "answer": ANSWER},
    ]
    together = collator(rows)
    arguments = {"labels": None, "shift_labels": None, "logits_to_keep": 1}
    with torch.no_grad():
        logits = model(**{**together, **arguments}).logits[:, -1]
        for row, expected in zip(rows, logits, strict=True):
            alone = collator([{"audio": None, **row}])
            torch.testing.assert_close(model(**{**alone, **arguments}).logits[0, -1], expected)
            assert supervised_runs(alone) == supervised_runs(together, rows.index(row))


def test_kept_logits_give_the_loss_of_all_logits(processor, two_turns, examples):
    model, losses = small_models.make_chat_model(), []
    for supervised_logits_only in (True, False):
        collator = AudioListenCollator(processor, supervised_logits_only=supervised_logits_only)
        losses.append(model(**collator([{"messages": two_turns}, examples[0]])).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_prompts_are_selected_before_the_first_trained_answer(processor, two_turns):
    model = small_models.make_adapted_chat_model()
    queries = {}
    with torch.no_grad(), record_selections(model) as records:
        for trained in ("all", "last"):
            model(**AudioListenCollator(processor, trained_answers=trained)([{"messages": two_turns}]))
            queries[trained] = records[-1].query
        for name, turn in (("first", 2), ("last turn", 4)):
            inputs = processor.apply_chat_template(
                two_turns[:turn], add_generation_prompt=True, tokenize=True, return_dict=True
            )
            model(**inputs)
            queries[name] = records[-1].query
    assert not torch.allclose(queries["first"], queries["last turn"])
    torch.testing.assert_close(queries["all"], queries["first"])
    torch.testing.assert_close(queries["last"], queries["last turn"])


def test_the_last_answers_in_an_evaluation_are_those_of_the_pipeline(processor, model, two_turns, examples):
    rows = [{"messages": two_turns}, examples[0], {**examples[1], "system": SYSTEM}]
    answers = answer_batches(model, AudioListenCollator(processor), rows, batch_size=2, max_new_tokens=6)
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=6)
    assert [output[0]["generated_text"].strip() for output in pipe(rows, batch_size=3)] == answers
    assert len(set(answers)) > 1


def test_the_pipeline_leaves_out_the_answer_of_a_row(processor, model, two_turns):
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=6)
    outputs = pipe({"messages": two_turns}, return_full_text=True)
    assert outputs[0]["generated_text"][:-1] == two_turns[:4] == outputs[0]["input_text"]
    assert pipe({"messages": two_turns[:4]}) == pipe({"messages": two_turns})


def with_message(two_turns, number, **changes):
    return [{**message, **(changes if number == index else {})} for index, message in enumerate(two_turns)]


REFUSED = {
    "no list": (lambda chat: {"messages": "Hello"}, "`messages` must be a list of at least one message"),
    "no message": (lambda chat: {"messages": []}, "`messages` must be a list of at least one message"),
    "a string as message": (lambda chat: {"messages": [*chat, "bye"]}, r"Message 5 of `messages` must be \{\"role\""),
    "another role": (
        lambda chat: {"messages": with_message(chat, 1, role="human")},
        "Message 1 of `messages` has the role 'human'; expected one of system, user, assistant",
    ),
    "no text": (
        lambda chat: {"messages": with_message(chat, 2, content=None)},
        "Message 2 of `messages` has a content of type NoneType",
    ),
    "an image": (
        lambda chat: {"messages": with_message(chat, 3, content=[{"type": "image"}])},
        "Message 3 of `messages` has the part {'type': 'image'}; expected",
    ),
    "a text part without text": (
        lambda chat: {"messages": with_message(chat, 3, content=[{"type": "text"}])},
        "has a text part whose text is None",
    ),
    "audio of the assistant": (
        lambda chat: {"messages": with_message(chat, 2, content=[audio("a.wav")])},
        "is of the assistant and has audio, which only the user's messages can have",
    ),
    "a late system prompt": (
        lambda chat: {"messages": with_message(chat, 2, role="system")},
        "Message 2 of `messages` is a system prompt; only the first may be one",
    ),
    "an answer first": (lambda chat: {"messages": chat[2:]}, "must begin with a question of the user"),
    "a system prompt alone": (lambda chat: {"messages": chat[:1]}, "must begin with a question of the user"),
    "two answers in a row": (
        lambda chat: {"messages": [*chat, {"role": "assistant", "content": "indeed"}]},
        "Messages 4 and 5 of `messages` are both of the assistant",
    ),
    "too few clips": (
        lambda chat: {"messages": with_message(chat, 1, content=[{"type": "audio"}] * 2), "audio": "a.wav"},
        "have 2 audio parts without a clip, and `audio` has 1 clips",
    ),
    "a clip in two places": (
        lambda chat: {"messages": chat, "audio": "a.wav"},
        "have 0 audio parts without a clip, and `audio` has 1 clips",
    ),
    "a place without clips": (
        lambda chat: {"messages": with_message(chat, 1, content=[{"type": "audio"}])},
        "have 1 audio parts without a clip, and `audio` has 0 clips",
    ),
    "another answer": (
        lambda chat: {"messages": chat, "answer": "no"},
        "its `answer` 'no' is not that of the messages, 'it is the loudest'",
    ),
    "another question": (lambda chat: {"messages": chat, "instruction": "Who?"}, "its `instruction` 'Who\\?' is not"),
    "another system prompt": (lambda chat: {"messages": chat, "system": "No."}, "its `system` 'No.' is not that"),
}
ONLY_TRAINED = {
    "no answer": (lambda chat: {"messages": chat[:4]}, "The last message is of the user, so there is no answer"),
    "the audio token": (
        lambda chat: {"messages": with_message(chat, 2, content="a <|audio|>")},
        r"message 2 'a <\|audio\|>' contains the audio token <\|audio\|>",
    ),
    "the audio token in a system prompt": (
        lambda chat: {"audio": None, "system": "<|audio|>", "instruction": "a", "answer": "b"},
        "its `system` '.*' contains the audio token",
    ),
    "half a surrogate pair": (
        lambda chat: {"messages": with_message(chat, 4, content="\ud83d")},
        "message 4 contains half a surrogate pair",
    ),
    "a number": (
        lambda chat: {"audio": None, "system": 1, "instruction": "a", "answer": "b"},
        "its `system` must be a string, got a int: 1",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, *ONLY_TRAINED])
def test_an_invalid_row_is_refused_by_its_number(processor, examples, two_turns, name):
    make_row, message = {**REFUSED, **ONLY_TRAINED}[name]
    with pytest.raises(ValueError, match=r"^Row 1 of the batch: .*" + message):
        AudioListenCollator(processor)([examples[0], make_row(two_turns)])


@pytest.mark.parametrize("name", REFUSED)
def test_the_pipeline_refuses_an_invalid_row(processor, model, two_turns, name):
    make_row, message = REFUSED[name]
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        pipe(make_row(two_turns))


def test_the_pipeline_refuses_a_system_prompt_that_is_no_text(processor, model):
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=2)
    with pytest.raises(ValueError, match="The system prompt must be a string, got a int: 1"):
        pipe({"system": 1, "instruction": "Who?"})


def test_a_template_that_refuses_the_roles_is_named(make_processor, make_tokenizer, two_turns):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
    processor = make_processor(tokenizer=make_tokenizer(chat_template=template + small_models.CHAT_TEMPLATE))
    message = (
        r"^Row 0 of the batch: The chat template does not render these messages \(TemplateError: no system prompts\)"
    )
    with pytest.raises(ValueError, match=message + ".*system, user, assistant"):
        AudioListenCollator(processor)([{"messages": two_turns}])


def test_another_value_of_trained_answers_is_refused(processor):
    with pytest.raises(ValueError, match='`trained_answers` must be "all" or "last", got \'first\''):
        AudioListenCollator(processor, trained_answers="first")
