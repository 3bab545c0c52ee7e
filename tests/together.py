"""How `make test` spreads the tests over its workers: the files of a folder that shares a stack go to one worker, which starts that
stack once and stops it when the folder is done; every other file goes to whoever is free."""

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped,unused-ignore]

SHARING = ("tests/browser/", "tests/e2e/")


class _FoldersTogether(LoadFileScheduling):  # type: ignore[misc,unused-ignore]
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((folder for folder in SHARING if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    return _FoldersTogether(config, log)
