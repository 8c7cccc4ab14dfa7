import torch
from transformers import pipeline

from peft_listen.analysis import SelectionRecords
from peft_listen.runs.selections import save_selections
from peft_listen.tuners.listen import find_listen_layer


def test_selections_that_are_not_finite_are_left_out(make_adapted, make_processor, examples, tmp_path, caplog):
    model = make_adapted("listen")
    pipe = pipeline("audio-text-to-text", model=model, processor=make_processor())
    path = tmp_path / "selections.safetensors"
    settings = {"batch_size": 2, "template_variables": {}}
    assert save_selections(pipe, examples, path, init_keys_at_steps=[2], **settings) is not None
    assert SelectionRecords.load(path).config["init_keys_at_steps"] == [2]
    path.unlink()
    with torch.no_grad():
        find_listen_layer(model).pool_of().keys[0, 0] = torch.nan
    assert save_selections(pipe, examples, path, **settings) is None
    assert "The selections of the adapter were not recorded: `" in caplog.text
    assert not path.exists()
