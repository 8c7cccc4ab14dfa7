"""How near the selected prompts are, which tasks use them, and how the page shows it."""

import re

import pytest
import torch
import torch.nn.functional as F

from peft_listen import ListenConfig
from peft_listen.analysis import NearestWords, NearWord, SelectionRecords
from peft_listen.page import (
    Answering,
    PageSettings,
    TaskShares,
    Variant,
    find_records,
    find_words,
    html,
    load_task_shares,
    prompt_words,
)
from peft_listen.page.selected_prompts import SelectedPrompt, SelectedPrompts
from peft_listen.run_folder import MODEL_NAME, SELECTIONS_NAME, SETTINGS_NAME
from peft_listen.serving import load_models


def make_records(tasks, indices, keys=None) -> SelectionRecords:
    keys = torch.eye(6) if keys is None else keys
    indices = torch.tensor(indices)
    scores = torch.zeros(indices.shape)
    return SelectionRecords(indices, scores, torch.ones(len(tasks), 6), keys, tasks)


def test_the_share_of_the_rows_of_each_task():
    records = make_records(["asr", "asr", "asr", "asr", "sound"], [[0, 1], [0, 2], [0, 1], [3, 1], [1, 5]])
    shares = TaskShares.from_records(records)
    assert shares.tasks_of(0) == [("asr", 0.75)]
    assert shares.tasks_of(1) == [("sound", 1.0), ("asr", 0.75)]
    assert shares.tasks_of(4) == []
    assert (shares.num_rows, shares.prompt_length) == (5, 2)


def test_the_cosines_are_those_of_the_centered_query_and_the_keys(answering, clips, records):
    *_, answer = answering.answer(Variant("dogs"), "What is said?", answering.read_clip(clips[0]))
    # The records have the same clip and instruction in their first row.
    expected = F.cosine_similarity(records.queries[0][None], records.keys)
    assert answer.selected.pool_cosines == pytest.approx(expected.tolist(), abs=1e-4)
    assert [prompt.index for prompt in answer.selected.prompts] == records.indices[0].tolist()
    for prompt in answer.selected.prompts:
        assert prompt.cosine == pytest.approx(float(expected[prompt.index]), abs=1e-4)
        assert dict(prompt.tasks)["asr"] >= 0.5  # the row itself is one of the two of its task


class TestFiles:
    def test_the_file_in_the_folder_of_the_adapter_is_found(self, tmp_path):
        assert find_records(str(tmp_path)) is None
        make_records(["asr"], [[0]]).save(tmp_path / SELECTIONS_NAME)
        assert find_records(str(tmp_path)) == str(tmp_path / SELECTIONS_NAME)
        assert find_records("org/no-folder") is None

    def test_the_file_that_a_training_run_has_written_is_found(self, tmp_path, monkeypatch):
        folder = tmp_path / "run" / MODEL_NAME
        folder.mkdir(parents=True)
        make_records(["asr"], [[0]]).save(folder.parent / SELECTIONS_NAME)
        assert find_records(str(folder)) is None, "it may be that of something else than a run"
        (folder.parent / SETTINGS_NAME).write_text("{}")
        monkeypatch.chdir(folder)
        (tmp_path / "link").symlink_to(folder)
        for name in (str(folder), ".", "../model", "../../link"):
            assert find_records(name) == str(folder.parent / SELECTIONS_NAME)
        (folder.parent / "other").mkdir()
        assert find_records("../other") is None

    def test_the_selections_of_an_adapter_are_loaded(self, models, records, tmp_path):
        records.save(tmp_path / "own.safetensors")
        shares = load_task_shares(str(tmp_path / "own.safetensors"), models, "dogs")
        assert shares.tasks_of(3) == TaskShares.from_records(records).tasks_of(3)

    def test_the_selections_of_another_adapter_are_refused(self, models, make_records, tmp_path):
        make_records("cats").save(tmp_path / "cats.safetensors")
        with pytest.raises(
            ValueError, match=r"cats.safetensors contains the selections of another adapter than 'dogs'"
        ):
            load_task_shares(str(tmp_path / "cats.safetensors"), models, "dogs")

    def test_selections_for_a_model_without_a_pool_are_refused(self, records, composite_folder, tmp_path):
        records.save(tmp_path / "own.safetensors")
        with pytest.raises(ValueError, match="'plain' has no LiSTEN adapter"):
            load_task_shares(str(tmp_path / "own.safetensors"), load_models([f"plain={composite_folder}"]), "plain")

    def test_other_files_are_refused(self, models, tmp_path):
        (tmp_path / "other.safetensors").write_text("{}")
        with pytest.raises(ValueError, match="is not a safetensors file"):
            load_task_shares(str(tmp_path / "other.safetensors"), models, "dogs")


class TestWords:
    def test_those_of_the_selected_prompts_are_shown(self, models, clips):
        words = find_words(models, "dogs")
        assert list(words.prompts) == list(range(8)) and {len(near) for near in words.prompts.values()} == {3}
        answering = Answering(models, PageSettings(max_new_tokens=1), words={"dogs": words})
        for name in ("dogs", "cats"):
            *_, answer = answering.answer(Variant(name), "What is said?", answering.read_clip(clips[0]))
            for prompt in answer.selected.prompts:
                shown = [word.text for word in words.prompts[prompt.index]] if name == "dogs" else []
                assert prompt.words == shown
                assert prompt.is_near_words == (name == "dogs" and words.is_near(prompt.index))

    def test_a_model_without_a_pool_has_none(self, composite_folder):
        assert find_words(load_models([f"plain={composite_folder}"]), "plain") is None

    def test_a_model_without_embeddings_has_none(self, models, monkeypatch, caplog):
        def refuse(*_, **__):
            raise ValueError("It has no matrix.")

        monkeypatch.setattr(prompt_words, "nearest_words", refuse)
        assert find_words(models, "dogs") is None
        assert "no words near the prompts of 'dogs'. It has no matrix." in caplog.text


class TestTable:
    def make(self, with_shares=True, with_words=False) -> SelectedPrompts:
        shares = TaskShares({}, 12, 2) if with_shares else None
        tasks = [("<script>", 0.914), ("b", 0.2), ("c", 0.1), ("d", 0.001)]
        prompts = [SelectedPrompt(2, 0.5, tasks, ["<b>", " dog"], True), SelectedPrompt(0, -0.25, [], ["cat"], False)]
        near = {0: [NearWord(1, "cat", 0.1)], 2: [NearWord(2, "<b>", 0.9)]}
        words = NearestWords(near, chance_similarity=0.25, word_similarity=0.5) if with_words else None
        return SelectedPrompts(prompts, [-0.25, -0.5, 0.5], shares, words)

    def test_rows_in_order_with_cosines_and_bars(self):
        table = html.selection(self.make())
        rows = re.findall(r"<tr><td>(\d+)</td>.*?width:([\d.]+)%.*?<span>([^<]+)</span>", table)
        assert rows == [("2", "100.0", "0.50"), ("0", "25.0", "\N{MINUS SIGN}0.25")]
        assert "2 of 3 prompts" in table
        assert table.count("<line ") == 3 and table.count("listen-chosen") == 2

    def test_tasks_with_their_shares_escaped(self):
        table = html.selection(self.make())
        assert "&lt;script&gt; <small>91 %</small>" in table and "<script>" not in table
        assert "and 1 more" in table and "<small>none</small>" in table
        assert "12 recorded rows with k = 2" in table.replace("\N{NO-BREAK SPACE}", " ")

    def test_without_records_the_page_says_so(self):
        table = html.selection(self.make(with_shares=False))
        assert "usual tasks" not in table and "There are no recorded selections" in table

    def test_words_escaped_with_those_that_are_near_none(self):
        table = html.selection(self.make(with_words=True))
        assert "near <q>&lt;b&gt;</q> <q> dog</q></td>" in table and "<b>" not in table.partition("<table>")[2]
        assert "near no word; <q>cat</q></td>" in table
        assert "95 % of random directions are (0.25); 1 of 2 prompts is. Being near" in table
        assert "words" not in html.selection(self.make())

    def test_equal_cosines(self):
        table = html.selection(SelectedPrompts([SelectedPrompt(0, 1.0, [])], [1.0, 1.0]))
        assert "nan" not in table and "inf" not in table

    def test_messages_and_headings_are_escaped(self):
        assert html.message("") == ""
        for made in (html.message("<b>"), html.note("<b>"), html.heading("<b>", "<b>")):
            assert "&lt;b&gt;" in made and "<b><b>" not in made


def test_the_number_of_prompts_in_training_is_described(answering):
    assert answering.descriptions["dogs"].trained_lengths == "4"
    assert answering.descriptions["dogs"].pool_size == 8
    drawn = ListenConfig(pool_size=8, prompt_length=4, stochastic_prompt_length=True)
    assert drawn.max_train_prompt_length == 8
