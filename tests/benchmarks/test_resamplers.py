import numpy as np
import resamplers


def test_frequencies_above_the_cutoff_are_gone_and_the_others_stay():
    t = np.arange(8000) / 8000
    low, high = np.sin(2 * np.pi * 500 * t), np.sin(2 * np.pi * 3000 * t)
    found = resamplers.low_passed((low + high)[None].astype(np.float32), 8000, 2000.0)
    np.testing.assert_allclose(found[0], low, atol=1e-4)


def test_the_resamplers_differ_least_where_both_pass_everything():
    found = resamplers.main(["--rates", "6000:4000", "--seconds", "1"])
    assert found["6000:4000"]["noise below 80%"] < -60
    assert -40 < found["6000:4000"]["noise"] < -10
