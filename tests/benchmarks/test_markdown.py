"""Generated text between markers."""

import pytest

from benchmarks.markdown import markers, with_texts, write_texts


def page(**texts):
    blocks = []
    for name, text in texts.items():
        begin, end = markers(name)
        blocks.append(f"{begin}\n{text}\n{end}\nbetween\n")
    return "before\n" + "".join(blocks)


def test_texts_are_replaced_between_their_own_markers(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(page(a="old", b="old", c="kept"))
    write_texts(path, {"b": "| two |", "a": "| one |"})
    expected = page(a="\n| one |\n", b="\n| two |\n", c="kept")
    assert path.read_text() == expected
    assert with_texts(expected, {"a": "| one |"}) == expected


@pytest.mark.parametrize("content", ["nothing", "<!-- a: begin -->\n", "<!-- a: end -->\n<!-- a: begin -->"])
def test_a_page_without_the_markers_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "page.md"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"page\.md: .*Add the lines <!-- a: begin --> and <!-- a: end -->"):
        write_texts(path, {"a": "| one |"})
    assert path.read_text() == content
