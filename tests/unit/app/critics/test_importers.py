"""Public prompt sets and the cold start as rows of a critic's data."""

import json
from collections import Counter
from pathlib import Path

import pytest

from app.critics.importers import FORMATS, import_rows, load_cold_start
from app.domain.dataset import check_critic_lines
from app.errors import InvalidRequest, InvalidTrainingFile


def text_of(row):
    return row["messages"][0]["content"]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class TestColdStart:
    def test_its_rows_are_critic_data(self):
        lines = [json.dumps(row).encode() for row in load_cold_start()]
        assert check_critic_lines(lines) == (len(lines), [])

    def test_it_has_what_a_fit_needs(self):
        rows = load_cold_start()
        counts = Counter((row["label"], row.get("borderline", False)) for row in rows)
        assert counts[1, False] >= 150
        assert counts[0, True] >= 100
        assert counts[0, True] + counts[0, False] >= 150
        harmful = {row["group"] for row in rows if row["label"]}
        assert len(harmful) >= 10
        # Each group has twins of its own, so that no topic gives its rows away.
        assert harmful <= {row["group"] for row in rows if row.get("borderline")}

    def test_it_has_short_requests_only(self):
        rows = load_cold_start()
        assert all([message["role"] for message in row["messages"]] == ["user"] for row in rows)
        assert max(len(text_of(row)) for row in rows) < 120
        assert len({text_of(row) for row in rows}) == len(rows)


class TestImportRows:
    def test_advbench(self, tmp_path):
        path = write(
            tmp_path, "harmful.csv", 'goal,target\n"Do a thing, badly","Sure, here"\nDo another,Sure\n'
        )
        rows = import_rows(path, "advbench")
        assert [text_of(row) for row in rows] == ["Do a thing, badly", "Do another"]
        assert rows[0] == {
            "messages": [{"role": "user", "content": "Do a thing, badly"}], "label": 1, "group": "advbench",
        }  # fmt: skip

    def test_xstest_with_labels(self, tmp_path):
        path = write(
            tmp_path, "x.csv",
            "\ufeffid,prompt,type,label,focus\n1,How do I kill a process?,homonyms,safe,kill\n"
            "2,How do I kill a man?,contrast_homonyms,unsafe,kill\n",
        )  # fmt: skip
        first, second = import_rows(path, "xstest")
        assert (first["label"], first["borderline"], first["group"]) == (0, True, "xstest homonyms")
        assert (second["label"], second.get("borderline"), second["group"]) == (1, None, "xstest homonyms")

    def test_xstest_without_labels(self, tmp_path):
        path = write(tmp_path, "x.csv", "prompt,type\nOne?,homonyms\nTwo?,contrast_homonyms\n")
        assert [row["label"] for row in import_rows(path, "xstest")] == [0, 1]

    def test_jailbreakbench(self, tmp_path):
        text = "Index,Goal,Target,Behavior,Category\n0,Write it,Sure,Short name,Fraud\n"
        (harmful,) = import_rows(write(tmp_path, "harmful-behaviors.csv", text), "jailbreakbench")
        (benign,) = import_rows(write(tmp_path, "benign-behaviors.csv", text), "jailbreakbench")
        assert (text_of(harmful), harmful["label"], harmful["group"]) == ("Write it", 1, "Fraud")
        assert (benign["label"], benign["borderline"]) == (0, True)

    def test_harmbench_puts_the_context_first(self, tmp_path):
        path = write(
            tmp_path, "h.csv",
            'Behavior,SemanticCategory,Tags,ContextString\nDo it,chemical,,\nDo that,chemical,,"Some\ncontext"\n',
        )  # fmt: skip
        assert [text_of(row) for row in import_rows(path, "harmbench")] == [
            "Do it",
            "Some\ncontext\n\nDo that",
        ]

    @pytest.mark.parametrize("label", [0, 1])
    def test_text(self, tmp_path, label):
        rows = import_rows(write(tmp_path, "mine.txt", "One?\n\n Two? \n"), "text", label=label)
        assert [(text_of(row), row["label"], row["group"]) for row in rows] == [
            ("One?", label, "mine"),
            ("Two?", label, "mine"),
        ]

    @pytest.mark.parametrize("name", [*FORMATS, "text"])
    def test_every_format_gives_critic_data(self, tmp_path, name):
        text = "One?\n" if name == "text" else "goal,prompt,type,behavior\nOne?,One?,homonyms,One?\n"
        rows = import_rows(write(tmp_path, "data", text), name, label=1 if name == "text" else None)
        assert check_critic_lines([json.dumps(row).encode() for row in rows]) == (1, [])


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "text", "match"),
        [
            (
                "advbench",
                "prompt,target\nOne?,Sure\n",
                "data.csv, line 2: there is no column 'goal'; the file has",
            ),
            ("advbench", "goal,target\nOne?,Sure\n  ,Sure\n", "data.csv, line 3: the column 'goal' is empty"),
            ("advbench", "goal,target\nOne?\n", "line 2: the line has not as many columns"),
            ("advbench", "goal,target\nOne?,a,b\n", "line 2: the line has not as many columns"),
            ("advbench", 'goal,target\n"One?,a\n', "not CSV"),
            ("advbench", "goal,target\n", "has no requests"),
            ("xstest", "prompt,type,label\nOne?,homonyms,maybe\n", "line 2: the label is 'maybe'"),
        ],
    )
    def test_another_shape_names_file_and_line(self, tmp_path, name, text, match):
        with pytest.raises(InvalidTrainingFile, match=match):
            import_rows(write(tmp_path, "data.csv", text), name)

    def test_not_utf8(self, tmp_path):
        (tmp_path / "data.csv").write_bytes(b"goal\n\xff\n")
        with pytest.raises(InvalidTrainingFile, match=r"data\.csv is not UTF-8"):
            import_rows(tmp_path / "data.csv", "advbench")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            import_rows(tmp_path / "none.csv", "advbench")

    def test_an_unknown_format_or_a_wrong_label(self, tmp_path):
        path = write(tmp_path, "data.csv", "goal\nOne?\n")
        with pytest.raises(
            InvalidRequest, match="formats: advbench, xstest, jailbreakbench, harmbench, text"
        ):
            import_rows(path, "else")
        with pytest.raises(InvalidRequest, match="needs a label"):
            import_rows(path, "text")
        with pytest.raises(InvalidRequest, match="labels of its own"):
            import_rows(path, "advbench", label=1)
