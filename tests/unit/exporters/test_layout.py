"""Lines that fit a terminal."""

from agent.exporters.layout import WIDTH, labelled, wrapped


def test_further_lines_stand_below_the_first_of_the_text() -> None:
    first, *others = labelled("risk", "word " * 60, "  ", 10)
    assert first.startswith("  risk      word")
    assert all(line.startswith(" " * 12 + "word") for line in others)
    assert max(map(len, (first, *others))) <= WIDTH


def test_a_wide_label_pushes_its_text_but_does_not_touch_it() -> None:
    assert list(labelled("longer than ten", "text", "", 10)) == ["longer than ten text"]


def test_no_text_leaves_the_label() -> None:
    assert list(labelled("risk", "", "  ", 10)) == ["  risk"]
    assert list(wrapped("", "")) == [""]
