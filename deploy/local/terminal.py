"""What `make run` shows of the logs: warnings and worse, of every process, behind its name. Everything else stays in the files."""

import re
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")
# structlog on a console and as JSON, nats-server, Postgres. What follows a line (a traceback) stays in the file.
SERIOUS = re.compile(
    r"\[(warning|error|critical)\s*\]"
    r'|"level": ?"(warning|error|critical)"'
    r"|\[(WRN|ERR|FTL)\]"
    r"|\b(WARNING|ERROR|FATAL|PANIC|CRITICAL):"
)


class LogFollower:
    """Reads what is appended to the log files of a folder from now on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = {path: path.stat().st_size for path in folder.glob("*.log")}

    def serious_lines(self) -> list[str]:
        """New lines of level warning and above, each as `<process>: <line>`."""
        found = []
        for path in sorted(self._folder.glob("*.log")):
            with path.open("rb") as log:
                log.seek(self._read.get(path, 0))
                text = log.read()
            complete = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(complete)
            lines = ANSI.sub("", complete.decode(errors="replace")).splitlines()
            found += [f"{path.stem}: {line}" for line in lines if SERIOUS.search(line)]
        return found
