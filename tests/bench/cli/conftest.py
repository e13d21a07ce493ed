"""What tests of the command line share."""

import pytest
from command_line import SMALL


@pytest.fixture
def matrix(tmp_path):
    def write(dataset="digits", samples=4, defense="class_means", extra=""):
        path = tmp_path / "small.toml"
        path.write_text(SMALL.format(dataset=dataset, samples=samples, defense=defense, extra=extra))
        return path

    return write
