"""Public prompt sets and the cold start as rows of a critic's data."""

import json
from collections import Counter
from pathlib import Path

import pytest

from app.critics.importers import (
    FORMATS,
    UNLABELLED,
    Source,
    import_rows,
    load_cold_start,
    parse_source,
)
from app.domain.dataset import Findings, check_critic_lines
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
        assert check_critic_lines(lines) == Findings(len(lines))

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
        text = "prompt,type\nOne?,homonyms\nTwo?,Contrast_Homonyms\nThree?,Privacy_Public\nFour?,contrast_discr\n"
        rows = import_rows(write(tmp_path, "x.csv", text), "xstest")
        assert [row["label"] for row in rows] == [0, 1, 0, 1]
        assert rows[0]["group"] == rows[1]["group"] == "xstest homonyms"

    def test_xstest_with_labels_may_have_other_types(self, tmp_path):
        (row,) = import_rows(write(tmp_path, "x.csv", "prompt,type,label\nOne?,mine,unsafe\n"), "xstest")
        assert (row["label"], row["group"]) == (1, "xstest mine")

    @pytest.mark.parametrize("name", ["harmful-behaviors.csv", "benign-behaviors.csv"])
    def test_jailbreakbench_goes_by_its_label_and_not_by_its_name(self, tmp_path, name):
        text = "Index,Goal,Target,Behavior,Category\n0,Write it,Sure,Short name,Fraud\n"
        path = write(tmp_path, name, text)
        (harmful,) = import_rows(path, "jailbreakbench", label=1)
        (benign,) = import_rows(path, "jailbreakbench", label=0)
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

    def test_text_is_split_where_lines_end_and_nowhere_else(self, tmp_path):
        (tmp_path / "mine.txt").write_bytes("One\u2028more\x0bor\rless?\r\nTwo?\x85!\n".encode())
        rows = import_rows(tmp_path / "mine.txt", "text", label=0)
        assert [text_of(row) for row in rows] == ["One\u2028more\x0bor\rless?", "Two?\x85!"]

    def test_blank_lines_around_the_header_are_skipped(self, tmp_path):
        path = write(tmp_path, "data.csv", "\r\n\ngoal,target\r\n\r\nOne?,Sure\r\n\r\n")
        assert [text_of(row) for row in import_rows(path, "advbench")] == ["One?"]

    @pytest.mark.parametrize("name", [*FORMATS, "text"])
    def test_every_format_gives_critic_data(self, tmp_path, name):
        text = "One?\n" if name == "text" else "goal,prompt,type,behavior\nOne?,One?,homonyms,One?\n"
        rows = import_rows(write(tmp_path, "data", text), name, label=1 if name in UNLABELLED else None)
        assert check_critic_lines([json.dumps(row).encode() for row in rows]) == Findings(1)


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
            ("advbench", "goal,target\nOne?\n", "line 2: the line has 1 columns, the first has 2"),
            ("advbench", "goal,target\nOne?,a,b\n", "line 2: the line has 3 columns, the first has 2"),
            ("advbench", 'goal,target\n"One?,a\n', "not CSV"),
            ("advbench", "goal,target\n", "has no requests"),
            ("xstest", "prompt,type,label\nOne?,homonyms,maybe\n", "line 2: the label is 'maybe'"),
            ("xstest", "prompt,type\nOne?,homonyms\nTwo?,Rhymes\n", "line 3: the type 'rhymes' is none of"),
            (
                "xstest",
                "prompt,type\nTwo?,contrast_rhymes\n",
                "line 2: the type 'contrast_rhymes' is none of",
            ),
            ("advbench", "goal,target\nOne?,a\nT\0wo?,b\n", "line 3: a NUL byte"),
            ("advbench", "Goal,target,goal \nOne?,a,Two?\n", "line 1: the column 'goal' stands there twice"),
            ("advbench", "goal;target\nOne?;a\n", "line 1: the columns are not separated by commas"),
            ("advbench", "goal\ttarget\nOne?\ta\n", "line 1: the columns are not separated by commas"),
            ("advbench", '"', "line 1: not CSV"),
            ("advbench", '"a"b,c\n', "line 1: not CSV"),
            ("advbench", '\n\n"a"b,c\n', "line 3: not CSV"),
            ("advbench", "a" * 140_000, "line 1: not CSV: field larger"),
            ("advbench", "\n\n", "has no requests"),
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
            InvalidRequest, match="formats: rows, advbench, xstest, jailbreakbench, harmbench, text"
        ):
            import_rows(path, "else")
        for name in UNLABELLED:
            with pytest.raises(InvalidRequest, match=rf"needs a label.* {name}\+1:FILE"):
                import_rows(path, name)
        with pytest.raises(InvalidRequest, match="labels of its own"):
            import_rows(path, "advbench", label=1)


class TestParseSource:
    @pytest.mark.parametrize(
        ("text", "source"),
        [
            ("mine.jsonl", ("mine.jsonl", "rows", None)),
            ("xstest:x.csv", ("x.csv", "xstest", None)),
            ("rows:mine.jsonl", ("mine.jsonl", "rows", None)),
            ("text+1:a+0:b.txt", ("a+0:b.txt", "text", 1)),
            ("jailbreakbench+0:/b.csv", ("/b.csv", "jailbreakbench", 0)),
            (r"C:\\sets\\x.csv", (r"C:\\sets\\x.csv", "rows", None)),
            (r"xstest:C:\\sets\\x.csv", (r"C:\\sets\\x.csv", "xstest", None)),
            ("./else:x.csv", ("./else:x.csv", "rows", None)),
        ],
    )
    def test_what_stands_before_the_colon_is_the_format(self, text, source):
        path, name, label = source
        assert parse_source(text) == Source(Path(path), name, label)

    def test_a_bare_file_has_the_format_that_is_given_beside_it(self):
        assert parse_source("x.txt", format_name="text", label=0) == Source(Path("x.txt"), "text", 0)
        assert parse_source("xstest:x.csv", format_name="text", label=0).label is None

    def test_what_looks_like_a_format_and_is_none(self):
        with pytest.raises(InvalidRequest, match=r"no format is called 'else'.* write \./else:x.csv"):
            parse_source("else:x.csv")
