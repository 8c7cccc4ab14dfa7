"""Tokens of the chat template are distinguished from those of the instruction."""

import pytest

from peft_listen.training import chat_template_token_ids


@pytest.mark.parametrize("what", ["processor", "tokenizer"])
def test_the_tokens_of_the_template_are_found(what, make_processor, make_tokenizer):
    tokenizer = make_tokenizer()
    processor = make_processor(tokenizer=tokenizer) if what == "processor" else tokenizer
    found = set(chat_template_token_ids(processor))
    chat = [{"role": "user", "content": "{}"}]
    empty = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    for part in empty.split("{}"):
        assert set(tokenizer(part)["input_ids"]) <= found
    assert not found & set(tokenizer("lazy dog")["input_ids"])


def test_the_tokens_that_a_variable_of_the_template_adds_are_found(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template += "{% if is_short %}{{ '<|im_end|>QQ' }}{% endif %}"
    added = set(tokenizer("QQ")["input_ids"])
    assert added and not added & set(chat_template_token_ids(tokenizer))
    assert added <= set(chat_template_token_ids(tokenizer, {"is_short": True}))


def test_a_tokenizer_without_a_template_raises(make_tokenizer):
    with pytest.raises(ValueError, match=r"has no chat template. Set its `chat_template`"):
        chat_template_token_ids(make_tokenizer(chat_template=None))
