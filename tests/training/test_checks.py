"""Warnings about trainer options that distort the key loss."""

import warnings

import pytest
from transformers import TrainingArguments

from peft_listen import ListenConfig
from peft_listen.training.checks import check_trainer_arguments


class Arguments:
    def __init__(self, **options):
        self.__dict__.update(options)


def test_default_arguments_give_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_trainer_arguments(TrainingArguments(output_dir=tmp_path, report_to=[])) == []
        assert check_trainer_arguments(Arguments(loss_type="nll", packing=False, padding_free=False)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`=0.1.*query includes the answer"),
        ({"loss_type": "dft"}, "`loss_type='dft'` weights the loss of every token.*Use `loss_type='nll'`"),
        ({"packing": True}, "`packing` and `padding_free` put several documents into one row"),
        ({"padding_free": True}, "`packing` and `padding_free` put several documents into one row"),
    ],
)
def test_a_distorting_option_gives_a_warning(options, message):
    with pytest.warns(UserWarning, match=message) as caught:
        messages = check_trainer_arguments(Arguments(**options))
    assert messages == [str(warning.message) for warning in caught]


def test_trainers_that_generate_need_a_fixed_number_of_prompts():
    arguments, drawn = Arguments(num_generations=8), ListenConfig(stochastic_prompt_length=True, prompt_length=5)
    with pytest.warns(UserWarning, match="generates with 5 prompts"):
        assert len(check_trainer_arguments(arguments, config=drawn)) == 1
    assert check_trainer_arguments(arguments, config=ListenConfig(stochastic_prompt_length=False)) == []
    assert check_trainer_arguments(Arguments(), config=drawn) == []


def test_a_custom_loss_function_gives_a_warning():
    with pytest.warns(UserWarning, match=r"`compute_loss_func`.*key loss is dropped"):
        check_trainer_arguments(Arguments(), compute_loss_func=lambda *_: 0)
