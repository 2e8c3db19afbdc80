"""What tests do on the page of `musicgen-jax app`."""

import io
import time
from pathlib import Path

import numpy as np
import soundfile

# Notes every piece of sound that the page queues: when, and its samples.
RECORD = """() => {
  window.heard = [];
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (at) {
    heard.push([at, this.context.sampleRate, Array.from(this.buffer.getChannelData(0))]);
    return start.call(this, at);
  };
}"""

# Files are decoded only when a test calls the next function in `held`.
HOLD = """() => {
  window.held = [];
  const decode = BaseAudioContext.prototype.decodeAudioData;
  OfflineAudioContext.prototype.decodeAudioData = async function (data) {
    await new Promise((resolve) => held.push(resolve));
    return decode.call(this, data);
  };
}"""

# Drops files on an element. Returns whether the page took the drop: otherwise the browser would
# open the first file in place of the page.
DROP = """(node, files) => {
  const dropped = new DataTransfer();
  for (const [name, bytes] of files) dropped.items.add(new File([new Uint8Array(bytes)], name));
  const event = { dataTransfer: dropped, bubbles: true, cancelable: true };
  return !node.dispatchEvent(new DragEvent("drop", event));
}"""


def make(page, text, seconds, seed=3):
    page.get_by_label("Describe the music").fill(text)
    page.get_by_label("Seconds").fill(str(seconds))
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Make music").click()


def says(page, words, seconds=60):  # a program may be compiled
    page.get_by_role("status").filter(has_text=words).wait_for(timeout=1000 * seconds)


def downloaded(page, name) -> tuple[str, bytes]:
    with page.expect_download() as found:
        page.get_by_role("button", name=name).first.click()
    return found.value.suggested_filename, Path(found.value.path()).read_bytes()


def tone(seconds, *pitches, rate=22050) -> bytes:
    """A wav file with one note after the other, in Hz."""
    time = np.arange(int(seconds / len(pitches) * rate)) / rate
    sound = np.concatenate([0.4 * np.sin(2 * np.pi * pitch * time) for pitch in pitches])
    target = io.BytesIO()
    soundfile.write(target, sound, rate, format="WAV")
    return target.getvalue()


def choose(page, kind, data, name):
    """Chooses a file as a sound."""
    files = [{"name": name, "mimeType": "audio/wav", "buffer": data}]
    page.get_by_label(f"{kind}: choose a file").set_input_files(files)


def give(page, kind, data, name="tune.wav"):
    """Chooses a file as a sound, and waits until it is there."""
    choose(page, kind, data, name)
    sound = page.get_by_role("region", name=kind)
    sound.locator(".name", has_text=name).wait_for()
    return sound


def drop(locator, *files: tuple[str, bytes]):
    """Drops files, each a name and its bytes, from outside on an element of the page."""
    assert locator.evaluate(DROP, [[name, [*data]] for name, data in files])


def samples(page) -> np.ndarray:
    """Of the clip on top."""
    return soundfile.read(io.BytesIO(downloaded(page, "Download WAV")[1]), dtype="int16")[0]


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
