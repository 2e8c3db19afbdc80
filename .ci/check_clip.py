"""Checks that a file holds audible music: `check_clip.py FILE --seconds 8`."""

import argparse

import numpy as np
import soundfile

parser = argparse.ArgumentParser()
parser.add_argument("file")
parser.add_argument("--seconds", type=float, required=True)
args = parser.parse_args()

samples, rate = soundfile.read(args.file, dtype="float32", always_2d=True)
seconds = len(samples) / rate
level = float(np.sqrt(np.mean(samples**2)))
clipped = float(np.mean(np.abs(samples) > 0.999))
print(f"{seconds:.2f} s, RMS {level:.3f}, {clipped:.2%} at full scale")
assert abs(seconds - args.seconds) < 0.05, "wrong length"
assert level > 0.01, "silent"
assert clipped < 1e-3, "clipping"
