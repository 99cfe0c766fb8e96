"""The soak of the run, scaled down; `make soak` goes through the whole."""

from run_soak import Soak, broken


def test_neither_iterations_nor_evaluations_keep_memory_or_descriptors():
    soak = Soak(iterations=30, evaluations=30)
    measured = soak.run()
    assert measured["evaluations"]["evaluations"] == 30
    assert [run["records"] for run in measured.values()] == [32, 59]
    assert broken(measured) == [], measured


def test_a_leak_of_either_breaks_a_bound(tmp_path):
    soak = Soak()
    for leak in ((10.0, 0), (0.0, 1)):
        soak.samples = [(100 + leak[0] * i, 9 + leak[1] * i) for i in range(60)]
        assert broken({"leaking": soak._growth()}) == ["leaking"]
