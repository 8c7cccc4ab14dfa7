import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState

import peft_listen_cli
from peft_listen import AudioListenForCausalLM
from peft_listen.training import FeatureCache
from peft_listen_cli import main
from tests.sharding.launching import run_forked


@pytest.fixture
def data(tmp_path, clips):
    """A data file of four clips, two of which occur twice, and a text-only example."""
    return write(tmp_path / "data.jsonl", [*clips[:2], clips[2:], clips[:2], None])


def write(path, clips):
    rows = [{"audio": clip, "instruction": "What is it?", "answer": "a tone", "task": "sounds"} for clip in clips]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def cached_clips(folder, composite_folder):
    return FeatureCache(folder, AudioListenForCausalLM.from_pretrained(composite_folder))


def test_training_finds_the_features_that_the_command_stored(
    data, clips, tmp_path, composite_folder, make_processor, capsys
):
    folder = tmp_path / "features"
    command = ["cache-features", data, "--model", str(composite_folder), "--folder", str(folder), "--batch-size", "3"]
    assert main([*command, "--shard-size", "2"]) == 0
    assert capsys.readouterr().out.endswith(": 4 clips of the data are in the cache, 4 of them are new\n")
    model = AudioListenForCausalLM.from_pretrained(composite_folder)
    expected = FeatureCache(tmp_path / "expected", model)
    expected.build(model, make_processor(), clips)
    found = FeatureCache(folder, model)
    for clip in clips:
        for name, feature in expected[clip].items():
            assert feature.allclose(found[clip][name], atol=1e-5)


def test_a_second_run_adds_only_new_clips_and_decodes_no_other(
    data, clips, tmp_path, composite_folder, write_wav, capsys, monkeypatch
):
    arguments = ["--model", str(composite_folder), "--folder", str(tmp_path / "features")]
    assert main(["cache-features", data, *arguments]) == 0
    new = str(write_wav(tmp_path / "new.wav", 0.5, seed=8))
    more = write(tmp_path / "more.jsonl", [clips[0], new])
    capsys.readouterr()
    decoded = count_decoded(monkeypatch)
    assert main(["cache-features", data, more, *arguments]) == 0
    assert capsys.readouterr().out.endswith(": 5 clips of the data are in the cache, 1 of them are new\n")
    assert set(decoded) == {new}


def count_decoded(monkeypatch):
    from peft_listen.audio import loading

    decode, names = loading.decode, []

    def counted(content, name, *arguments):
        names.append(name)
        return decode(content, name, *arguments)

    monkeypatch.setattr(loading, "decode", counted)
    return names


def test_an_adapter_stands_for_its_base_model(data, tmp_path, composite_folder, make_adapted):
    make_adapted("listen").save_pretrained(tmp_path / "adapter")
    arguments = ["--model", str(tmp_path / "adapter"), "--folder", str(tmp_path / "features")]
    assert main(["cache-features", data, *arguments]) == 0
    assert len(cached_clips(tmp_path / "features", composite_folder)) == 4


def test_each_dtype_has_its_own_features(data, clips, tmp_path, composite_folder):
    arguments = ["--model", str(composite_folder), "--folder", str(tmp_path / "features"), "--dtype", "bfloat16"]
    assert main(["cache-features", data, *arguments]) == 0
    assert len(cached_clips(tmp_path / "features", composite_folder)) == 0
    model = AudioListenForCausalLM.from_pretrained(composite_folder, dtype="bfloat16")
    cache = FeatureCache(tmp_path / "features", model)
    assert len(cache) == 4
    assert str(cache[clips[0]]["speech_features"].dtype) == "torch.bfloat16"


@pytest.mark.parametrize(
    ("clips_of_data", "message"),
    [
        (["missing.wav"], r"missing\.wav: no such audio file"),
        (["broken.wav"], r"broken\.wav is not an audio file"),
        ([None], r"no example has audio, so there is nothing to encode"),
        ([], r"contains no examples"),
    ],
)
def test_data_without_usable_clips_exit_with_2(tmp_path, composite_folder, capsys, clips_of_data, message):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    data = write(tmp_path / "data.jsonl", clips_of_data)
    arguments = ["--model", str(composite_folder), "--folder", str(tmp_path / "features")]
    assert main(["cache-features", data, *arguments]) == 2
    assert re.search(rf"peft-listen: error: .*{message}", capsys.readouterr().err)


@pytest.fixture
def damaged(clips, tmp_path):
    """A data file of four clips, and two rows with a clip that cannot be loaded."""
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    bad = [str(tmp_path / "missing.wav"), [clips[0], str(tmp_path / "broken.wav")]]
    return write(tmp_path / "damaged.jsonl", [*clips[:2], *bad, clips[2:]])


def test_rows_with_bad_clips_are_left_out_and_counted(damaged, tmp_path, composite_folder, capsys, caplog):
    command = ["cache-features", damaged, "--model", str(composite_folder), "--folder", str(tmp_path / "features")]
    assert main([*command, "--on-bad-clip", "skip"]) == 0
    expected = "4 clips of the data are in the cache, 4 of them are new; 2 rows skipped\n"
    assert capsys.readouterr().out.endswith(f": {expected}")
    (message,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert f"2 of 5 rows of {damaged} are skipped" in message and "row 3: " in message
    assert main([*command, "--on-bad-clip", "skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    folder = cached_clips(tmp_path / "features", composite_folder).folder
    assert found == {"folder": str(folder), "num_clips": 4, "num_new": 0, "num_skipped": 2}
    assert main(command) == 2


def test_the_data_are_read_before_the_model(tmp_path, capsys):
    arguments = ["--model", str(tmp_path / "no_model"), "--folder", str(tmp_path / "features")]
    assert main(["cache-features", str(tmp_path / "none.jsonl"), *arguments]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_a_missing_model_is_explained(data, tmp_path, capsys):
    arguments = ["--model", str(tmp_path / "no_model"), "--folder", str(tmp_path / "features")]
    assert main(["cache-features", data, *arguments]) == 2
    assert re.search(r"error: There is no file or folder '.*no_model'\.", capsys.readouterr().err)
    assert not (tmp_path / "features").exists()


def test_a_model_of_another_kind_is_explained(data, tmp_path, published_parts, capsys):
    arguments = ["--model", str(published_parts["llm"]), "--folder", str(tmp_path / "features")]
    assert main(["cache-features", data, *arguments]) == 2
    assert "This is the checkpoint of a 'llama' model" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_explained(data, tmp_path, composite_folder, capsys):
    (tmp_path / "features").write_text("a file")
    arguments = ["--model", str(composite_folder), "--folder", str(tmp_path / "features")]
    assert main(["cache-features", data, *arguments]) == 2
    assert str(tmp_path / "features") in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch-size", "--shard-size"])
@pytest.mark.parametrize("number", ["0", "many"])
def test_sizes_below_one_are_refused(option, number, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["cache-features", "data.jsonl", "--model", "m", "--folder", "f", option, number])
    assert exit_info.value.code == 2
    assert option in capsys.readouterr().err


@pytest.fixture
def command_of_two(data, tmp_path, composite_folder):
    return ["cache-features", data, "--model", str(composite_folder), "--folder", str(tmp_path / "features")]


def check_what_two_processes_wrote(output, clips, folder, composite_folder):
    assert output.count("4 clips of the data are in the cache, 4 of them are new") == 1
    cache = cached_clips(folder, composite_folder)
    assert all(clip in cache for clip in clips)
    assert len(list(cache.folder.glob("*.safetensors"))) == 2  # one of each process
    assert len(list((folder / "index").iterdir())) == 1  # merged


def run_as_process(rank, port, command, output):
    """Runs the command as one of two processes, as launchers start them."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    with open(output, "w") as file, contextlib.redirect_stdout(file):
        code = main(command)
    os._exit(code)  # gloo at times aborts when a process ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.cpu_only("its processes use gloo")
def test_two_processes_share_the_clips(command_of_two, clips, tmp_path, composite_folder):
    outputs = [tmp_path / f"{rank}.txt" for rank in range(2)]
    assert run_forked(run_as_process, [(command_of_two, output) for output in outputs]) == [0, 0]
    output = "".join(path.read_text() for path in outputs)
    check_what_two_processes_wrote(output, clips, tmp_path / "features", composite_folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.cpu_only("its processes use gloo")
def test_two_processes_count_a_bad_clip_once(damaged, command_of_two, clips, tmp_path, composite_folder):
    command_of_two[1] = damaged
    outputs = [tmp_path / f"{rank}.txt" for rank in range(2)]
    command_of_two += ["--on-bad-clip", "skip"]
    assert run_forked(run_as_process, [(command_of_two, output) for output in outputs]) == [0, 0]
    output = "".join(path.read_text() for path in outputs)
    assert output.count("; 2 rows skipped\n") == 1
    check_what_two_processes_wrote(output, clips, tmp_path / "features", composite_folder)


@pytest.mark.slow  # three processes import torch
def test_a_launcher_starts_two_processes(command_of_two, clips, tmp_path, composite_folder):
    source = str(Path(peft_listen_cli.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    # `--cpu` would start one process; `--multi_gpu` starts two, and the variable keeps them on the CPU.
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "--module", "peft_listen_cli"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *command_of_two]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    check_what_two_processes_wrote(result.stdout, clips, tmp_path / "features", composite_folder)
