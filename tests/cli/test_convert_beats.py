from pathlib import Path

import torch

from peft_listen import BeatsModel
from peft_listen_cli import main


CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "beats" / "iter3plus.pt"


def test_a_checkpoint_becomes_a_folder_that_loads(tmp_path, capsys):
    folder = tmp_path / "beats"
    assert main(["convert-beats", str(CHECKPOINT), str(folder)]) == 0
    assert capsys.readouterr().out == f"Wrote {folder}\n"
    original, converted = BeatsModel.from_original_checkpoint(CHECKPOINT), BeatsModel.from_pretrained(folder)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, converted.state_dict()[name])


def test_a_missing_checkpoint_is_explained(tmp_path, capsys):
    assert main(["convert-beats", str(tmp_path / "none.pt"), str(tmp_path / "beats")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("peft-listen: error: ") and "none.pt" in error
    assert not (tmp_path / "beats").exists()


def test_a_file_that_is_no_checkpoint_is_explained(tmp_path, capsys):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    assert main(["convert-beats", str(tmp_path / "other.pt"), str(tmp_path / "beats")]) == 2
    assert "other.pt" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main(["convert-beats", str(CHECKPOINT), str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
