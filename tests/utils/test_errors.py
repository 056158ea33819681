from __future__ import annotations

from scripts.utils.errors import FaultsError, fault_line


def test_a_fault_names_its_file_once() -> None:
    assert fault_line(ValueError("a/x.png: 4 channels"), "a/x.png", "a/y.png") == "a/x.png: 4 channels"
    assert fault_line(ValueError("damaged"), "a/x.png") == "a/x.png: cannot be read: damaged"
    assert fault_line(ValueError("damaged"), "a/x.png", "a/y.png") == "a/x.png / a/y.png: cannot be read: damaged"
    named = fault_line(ValueError("'a/y.png' is\n gone"), "a/x.png", "a/y.png")
    assert named == "a/y.png: cannot be read: 'a/y.png' is gone"


def test_a_message_shows_the_first_faults_and_counts_the_others() -> None:
    error = FaultsError([f"fault {i}" for i in range(12)])
    assert len(error.faults) == 12
    assert str(error).splitlines() == [*(f"fault {i}" for i in range(5)), "... and 7 more"]
    assert str(FaultsError(["one"])) == "one"
