"""The page of `musicgen-jax app` while music is changed, on a server with a small text model."""

import itertools
import json
import math
import threading
import time
from urllib.parse import urlencode

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import cue_of
from musicgen_jax.serving.http.about import About
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.app_page import RECORD, downloaded, make, samples, says, wait_until
from tests.helpers.browser import opened
from tests.helpers.http_server import SMALL, serving

pytestmark = pytest.mark.browser
ABOUT = About("MIT licence", "Do what you like.", "It knows noise.", ("a calm hiss",))


def hear(text: str) -> str:
    return f"noise; it does not know: {text}"


class Gate:
    """In place of a scheduler's `turn`: once it is shut, no clip goes on.

    Attributes:
      seconds: that each turn takes longer.
    """

    def __init__(self):
        self.seconds = 0.0
        self._left = math.inf  # turns until it is shut
        self._changed = threading.Condition()

    @property
    def shut(self):
        return self._left <= 0

    def open(self):
        self.shut_after(math.inf)

    def shut_after(self, turns):
        with self._changed:
            self._left = turns
            self._changed.notify_all()

    def __enter__(self):
        with self._changed:
            self._changed.wait_for(lambda: self._left > 0)
            self._left -= 1
        time.sleep(self.seconds)

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="module")
def scheduler():
    parts = testing.random_model(SMALL).parts
    with Scheduler(parts, slots=1, negatives=True, warm=False) as scheduler:
        scheduler.turn = Gate()
        yield scheduler


@pytest.fixture(scope="module")
def server(scheduler):
    with serving(scheduler, max_duration=600.0, steer_seconds=1.0, hear=hear, page=ABOUT) as server:
        yield server


@pytest.fixture
def page(browser, server, scheduler):
    scheduler.turn.open()
    scheduler.turn.seconds = 0.0
    with opened(browser, server.url) as page:
        page.locator("body[data-ready]").wait_for()
        yield page
        scheduler.turn.open()


def begin(page, scheduler, text="a calm waltz", seconds=60):
    """Begins a clip that stops in the middle; `scheduler.turn` lets it go on, not too fast."""
    scheduler.turn.shut_after(40)
    make(page, text, seconds)
    page.locator(".steer").wait_for(timeout=60_000)  # a program may be compiled
    wait_until(lambda: scheduler.turn.shut)
    scheduler.turn.seconds = 0.01


def steer(page, scheduler, text):
    page.get_by_label("Change the music to").fill(text)
    page.get_by_label("Change the music to").press("Enter")
    page.locator(".steered", has_text=text).wait_for()
    scheduler.turn.open()
    page.locator(".steered", has_text="From 0:").filter(has_text=text).wait_for()


def test_a_clip_is_steered_and_its_schedule_makes_it_again(page, scheduler):
    begin(page, scheduler)
    assert page.locator(".heard").inner_text() == f"debug heard: {hear('a calm waltz')}"
    assert page.get_by_label("Away from").last.is_disabled()  # the clip began without one
    page.get_by_text("Steer away from").click()
    page.get_by_label("Temperature").last.fill("0.5")
    steer(page, scheduler, "drums enter")
    says(page, "The clip is finished.")
    told = json.loads(downloaded(page, "Download the settings")[1])
    (cue,) = told["schedule"]
    assert (cue["prompt"], cue["temperature"]) == ("drums enter", 0.5)
    assert 0 < cue["seconds"] < 60
    when = f"{int(cue['seconds'] // 60)}:{int(cue['seconds'] % 60):02}"
    line = page.locator(".steered").inner_text()
    assert line.startswith(f"From {when} on: drums enter, temperature 0.5.")
    assert hear("drums enter") in line
    # The time line: which text sounds when, and which one sounds now.
    scenes = page.locator(".clip .scenes li")
    assert [" ".join(text.split()) for text in scenes.all_inner_texts()] == [
        "0:00 a calm waltz",
        f"{when} drums enter, temperature 0.5",
    ]
    bands = page.locator(".bands div")
    first, second = (band.bounding_box() for band in bands.all())
    picture = page.locator(".clip .wave").bounding_box()
    at = (second["x"] - picture["x"]) / picture["width"]
    assert at == pytest.approx(cue["seconds"] / 60, abs=0.03)
    assert first["x"] == pytest.approx(picture["x"], abs=1)
    scenes.nth(1).get_by_role("button").click()
    page.locator(".clip .scenes li[aria-current]", has_text="drums enter").wait_for()
    assert float(page.locator(".seek").input_value()) >= cue["seconds"]
    # The same music: given in advance, by the page and without it.
    steered = samples(page)
    known = Request(
        config=SMALL, descriptions=["a calm waltz"], duration=60.0, seed=3,
        schedule=[cue_of(cue)],
    )  # fmt: skip
    audio = scheduler.submit(known).result().audio[0]
    np.testing.assert_array_equal(steered, to_int16(apply_level(audio, "clip", 0.0))[0])
    page.reload()
    page.get_by_role("button", name="Use settings").click()
    assert "drums enter" in page.locator("#plan").inner_text()
    page.get_by_role("button", name="Make music").click()
    says(page, "The clip is finished.")
    np.testing.assert_array_equal(samples(page), steered)
    with page.expect_request("**/v1/audio/generate") as asked:
        page.get_by_role("button", name="Again").first.click()
    again = asked.value.post_data_json
    assert again["schedule"] == [cue]
    assert again["seed"] != 3
    assert "schedule" in page.url
    page.get_by_role("button", name="Remove them").click()
    assert not page.locator("#plan").is_visible()


def test_what_a_schedule_has_changed_can_be_changed_back(page, scheduler, server):
    schedule = json.dumps([[0.5, "drums enter"]])
    page.goto(f"{server.url}#{urlencode({'prompt': 'a calm waltz', 'schedule': schedule})}")
    page.locator("#plan", has_text="drums enter").wait_for()
    begin(page, scheduler)
    wait_until(lambda: page.evaluate("() => clips[0].seconds") > 0.5)
    steered, refused = page.locator(".steered"), page.locator(".refused")
    page.get_by_label("Change the music to").fill("drums enter")
    page.get_by_label("Change the music to").press("Enter")
    refused.filter(has_text="Change the text or a number first.").wait_for()
    # A field that nobody has edited asks for nothing, whatever it said at the beginning.
    text = page.get_by_label("Change the music to")
    assert text.input_value() == "drums enter"
    page.get_by_text("Steer away from, guidance, temperature").click()
    with page.expect_request("**/steer") as asked:
        page.locator(".cfg-to").fill("2")
        page.locator(".cfg-to").press("Enter")
    assert asked.value.post_data_json == {"cfg_coef": 2}
    steered.filter(has_text="Guidance").wait_for()
    steer(page, scheduler, "a calm waltz")
    assert "a calm waltz" in steered.inner_text()


def test_a_link_whose_changes_cannot_be_read_says_so(page, server):
    page.goto(f"{server.url}#{urlencode({'prompt': 'a calm waltz', 'schedule': '[[0.5, '})}")
    page.get_by_role("alert").filter(has_text="changes in this link cannot be read").wait_for()
    assert not page.locator("#plan").is_visible()


def test_endless_music_plays_until_stop_and_the_card_keeps_the_last_of_it(page, scheduler):
    # In seconds; a page that plays needs up to 8 of them.
    page.evaluate("() => ROOM.splice(0, 3, 1, 2, 10)")
    page.get_by_role("button", name="Endless").click()
    assert page.get_by_label("Seconds").is_disabled()
    page.get_by_label("Describe the music").fill("a calm waltz")
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_role("button", name="Make music").click()
    page.locator(".steer").wait_for(timeout=60_000)
    page.get_by_label("Change the music to").fill("drums enter")
    page.get_by_label("Change the music to").press("Enter")
    page.locator(".steered", has_text="From 0:").wait_for()
    wait_until(lambda: page.evaluate("() => clips[0].dropped") > 0, seconds=60)
    assert page.evaluate("() => clips[0].data.length") == 10 * SMALL.sample_rate
    wait_until(lambda: page.evaluate("() => player.playing"))  # a busy machine may pause
    assert "the last 0:10 minutes are kept" in page.locator(".pace").inner_text()
    page.get_by_role("button", name="Stop").first.click()
    page.locator(".note", has_text="earlier music is not kept").wait_for()
    assert not page.evaluate("() => player.playing")
    wait_until(lambda: not scheduler.busy)
    told = json.loads(downloaded(page, "Download the settings")[1])
    assert told["endless"]
    assert "duration" not in told
    kept = samples(page)
    assert len(kept) / SMALL.sample_rate == pytest.approx(told["seconds"])
    assert 8 < told["seconds"] <= 10
    # What is kept is the music from there on.
    cues = [cue_of(cue) for cue in told["schedule"]]
    endless = Request(
        config=SMALL, descriptions=["a calm waltz"], duration=None, seed=3, schedule=cues
    )
    first = round(told["begins"] * SMALL.sample_rate)
    audio = np.zeros((1, 0), np.float32)
    ticket = scheduler.submit(endless)
    for block in ticket:
        audio = np.concatenate([audio, block], axis=1)
        if audio.shape[1] >= first + len(kept):
            break
    ticket.cancel()
    wanted = to_int16(apply_level(audio, "clip", 0.0))[0]
    np.testing.assert_array_equal(kept, wanted[first : first + len(kept)])
    page.reload()
    assert "of endless music" in page.locator(".facts").inner_text()
    np.testing.assert_array_equal(samples(page), kept)
    page.get_by_role("button", name="Use settings").click()
    assert page.get_by_role("button", name="Endless", pressed=True).count() == 1
    page.get_by_role("button", name="Endless").click()
    assert page.get_by_label("Seconds").is_enabled()


def test_on_a_slow_machine_a_clip_plays_when_it_can_reach_its_end(page, scheduler):
    page.evaluate(RECORD)
    page.evaluate("""() => {
      const arrived = player.arrived;
      player.arrived = (clip) => {
        arrived(clip);
        if (player.playing) window.there ??= clip.frames / clip.total; // when it began to sound
      };
    }""")
    make(page, "warm", 0.5)  # compiles
    says(page, "The clip is finished.")
    page.evaluate("() => (player.pause(), delete window.there, heard.splice(0))")
    scheduler.turn.seconds = 0.4
    scheduler.turn.shut_after(25)
    make(page, "a slow march", 3)
    page.locator(".note", has_text="This machine makes music at 0.").wait_for()
    assert page.evaluate("() => player.holding && !heard.length")  # nothing sounds yet
    scheduler.turn.open()
    says(page, "Making music.")
    says(page, "The clip is finished.")
    wait_until(lambda: float(page.locator(".clip .seek").first.input_value()) > 1)
    assert page.evaluate("() => there") > 0.3
    heard = page.evaluate("() => heard")
    joined = [
        following - at == pytest.approx(len(part) / rate, abs=1e-6)
        for (at, rate, part), (following, _, _) in itertools.pairwise(heard)
    ]
    # It may have become slower still; then it pauses, and says so.
    assert joined.count(False) <= page.evaluate("() => clips[0].underruns") <= 1


def test_what_cannot_be_steered_is_said_in_one_line(page, scheduler, server):
    begin(page, scheduler)
    refused = page.locator(".refused")
    steer_button = page.get_by_role("button", name="Steer", exact=True)
    steer_button.click()
    assert refused.inner_text() == "Change the text or a number first."
    page.get_by_text("Steer away from").click()
    page.get_by_label("Guidance").last.fill("")
    steer_button.click()
    assert refused.inner_text() == "Guidance must be a number from -100 to 100."
    page.get_by_label("Guidance").last.fill("3")
    server.service.streams.clear()  # as when it has ended
    page.get_by_label("Change the music to").fill("too late")
    steer_button.click()
    refused.filter(
        has_text="The server says: this stream has ended, or its id is wrong."
    ).wait_for()
    page.context.set_offline(True)
    steer_button.click()
    refused.filter(has_text="The server does not answer.").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Stop").first.click()
    page.locator(".note", has_text="Stopped after").wait_for()
    assert not page.locator(".steer").is_visible()
    assert not page.locator(".clip .scenes").is_visible()  # nothing has changed


def test_a_change_that_waits_for_its_turn_is_placed_later(page, scheduler):
    begin(page, scheduler)
    page.get_by_label("Change the music to").fill("after a while")
    page.get_by_label("Change the music to").press("Enter")
    page.locator(".steered", has_text="counts as soon as the clip goes on").wait_for()
    scheduler.turn.open()
    page.locator(".steered", has_text="From 0:").wait_for()
    page.locator(".clip .scenes", has_text="after a while").wait_for()
