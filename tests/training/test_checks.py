"""Options that would distort the key loss are warned of."""

import warnings

import pytest
from transformers import TrainingArguments

from peft_listen.training.checks import check_trainer_arguments


class Arguments:
    def __init__(self, **options):
        self.__dict__.update(options)


def test_plain_arguments_raise_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_trainer_arguments(TrainingArguments(output_dir=tmp_path, report_to=[])) == []
        assert check_trainer_arguments(Arguments(loss_type="nll", packing=False, padding_free=False)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`=0.1.*answer gets into the query"),
        ({"loss_type": "dft"}, "`loss_type='dft'` weighs every token's loss.*Use `loss_type='nll'`"),
        ({"packing": True}, "`packing` and `padding_free` put several documents into one row"),
        ({"padding_free": True}, "`packing` and `padding_free` put several documents into one row"),
    ],
)
def test_a_distorting_option_is_warned_of(options, message):
    with pytest.warns(UserWarning, match=message) as caught:
        messages = check_trainer_arguments(Arguments(**options))
    assert messages == [str(warning.message) for warning in caught]


def test_a_loss_function_of_the_users_is_warned_of():
    with pytest.warns(UserWarning, match=r"`compute_loss_func`.*key loss is dropped"):
        check_trainer_arguments(Arguments(), compute_loss_func=lambda *_: 0)
