"""DistributedDataParallel and FSDP2: two processes, of which one has no clips, train as one process does."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from peft_listen import ListenConfig
from tests import small_models
from tests.sharding import audio_training
from tests.sharding.launching import run_two_processes


pytestmark = [pytest.mark.slow, pytest.mark.cpu_only("its processes use gloo")]
KINDS = ("DDP", *audio_training.FSDP2_KINDS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(small_models.write_wav(tmp_path_factory.mktemp("clips") / "clip.wav", 0.6))


@pytest.fixture(scope="module")
def alone(clip):
    """One process that trains with all rows."""
    model = audio_training.make_model()
    found = audio_training.train(model, model, clip)
    found["evaluated"] = [audio_training.evaluated(model, clip, rank, processes=2) for rank in (0, 1)]
    found["answers"] = [audio_training.answers(model, clip, rank)[0] for rank in (0, 1)]
    return model, found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("processes")
    arguments = [clip, str(folder), ";".join(KINDS), "550"]
    outputs = run_two_processes("tests.sharding.audio_training", arguments, folder, timeout=560)
    for rank, output in enumerate(outputs):
        for kind in KINDS:
            assert (folder / f"{kind}-{rank}.safetensors").exists(), output[-3000:]
    return folder


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def found(kind, folder):
    return [load_file(folder / f"{kind}-{rank}.safetensors") for rank in (0, 1)]


def test_the_losses_are_those_of_one_process(found, alone):
    losses = sum(rank["losses"] for rank in found)
    torch.testing.assert_close(losses, alone[1]["losses"], atol=1e-5, rtol=1e-5)
    assert losses[0] - losses[-1] > 0.1


def test_the_pool_is_that_of_one_process(found, alone):
    expected = audio_training.whole_pool(alone[0])
    for rank in found:
        for name, tensor in expected.items():
            torch.testing.assert_close(rank[name], tensor, atol=1e-4, rtol=1e-4, msg=name)
    assert torch.equal(found[0]["pool.keys"], found[1]["pool.keys"])


def test_evaluation_and_answers_are_those_of_one_process(found, alone):
    for rank, values in enumerate(found):
        torch.testing.assert_close(values["evaluated"], alone[1]["evaluated"][rank], atol=1e-4, rtol=1e-4)
        assert bytes(values["answer"].tolist()).decode() == alone[1]["answers"][rank]


def test_the_saved_adapter_is_whole(kind, folder, alone, clip):
    model = PeftModel.from_pretrained(small_models.make_chat_model(), folder / f"{kind} adapter")
    for rank in (0, 1):
        loss = audio_training.evaluated(model, clip, rank, processes=2)
        torch.testing.assert_close(loss, alone[1]["evaluated"][rank], atol=1e-4, rtol=1e-4)


def test_an_adapter_is_loaded_into_shards(folder, alone):
    for rank in (0, 1):
        loss = load_file(folder / f"FSDP2-{rank}.safetensors")["loaded"]
        torch.testing.assert_close(loss, alone[1]["evaluated"][rank], atol=1e-4, rtol=1e-4)


def test_a_pool_is_initialized_from_sharded_embeddings(folder):
    config = ListenConfig(pool_size=12, prompt_length=3, center_queries=True)
    expected = get_peft_model(small_models.make_chat_model(), config).base_model.layer.pool_of().state_dict()
    for rank in (0, 1):
        found = load_file(folder / f"FSDP2-{rank}.safetensors")
        for name, tensor in expected.items():
            torch.testing.assert_close(found[f"initial.{name}"], tensor, msg=name)
    assert expected["keys"].abs().max() > 0.01
