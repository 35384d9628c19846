"""Commands that stand in docs/mlops.md under a mark, run as a reader would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs/mlops.md").read_text(encoding="utf-8")


def commands(name: str) -> str:
    """Return the block of commands that stands under this mark."""
    (found,) = re.findall(rf"<!-- {name} -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def run_block(name: str, folder: Path | None = None, **variables: str) -> None:
    """Run a block, in a folder if one is given, with these variables and no other setting; demand that it succeeds."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TETHER_")}
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", commands(name)],
        env={**environment, "PATH": path, **variables},
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
