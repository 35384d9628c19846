"""Running the tether command in this process."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from app.cli import main


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as JSON, after checking that it succeeded and holds no control character."""
        assert self.code == 0, self.err
        assert self.out.replace("\n", "").isprintable()
        return json.loads(self.out)


class Tether:
    """The command with an environment of its own."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        *,
        url: str | None = None,
        key: str | None = None,
    ) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        for name, value in (("TETHER_URL", url), ("TETHER_API_KEY", key)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    def __call__(self, *arguments: object) -> Done:
        self.monkeypatch.setattr("sys.argv", ["tether", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(exited.value.code or 0), out, err)
