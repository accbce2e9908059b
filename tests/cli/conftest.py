"""What the tests of the command line share."""

import warnings

import pytest

from ribozyme.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: exit status, stdout, stderr."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["ribozyme", *map(str, words)])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as stopped:
                main()
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call
