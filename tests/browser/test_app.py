"""The page of `musicgen-jax app` in a real browser, on a server with a small random model."""

import dataclasses
import io
import json
import threading
import time

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

import itertools

from musicgen_jax import testing
from musicgen_jax.audio import resample
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level
from musicgen_jax.generation.request import Request
from musicgen_jax.serving.http.about import About, Choice
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.app_page import (
    HOLD,
    RECORD,
    choose,
    downloaded,
    drop,
    give,
    make,
    samples,
    says,
    tone,
    wait_until,
)  # fmt: skip
from tests.helpers.browser import PHONE, opened
from tests.helpers.http_server import serving

pytestmark = pytest.mark.browser
LM = dataclasses.replace(testing.DEBUG_MELODY.lm, num_layers=1)
T5 = dataclasses.replace(testing.DEBUG.t5, num_layers=1)
MODEL = dataclasses.replace(testing.DEBUG_MELODY, lm=LM, t5=T5)
RATE = MODEL.sample_rate
CHOICES = (
    Choice("debug", True, "noise"),
    Choice("other", True, "more noise"),
    Choice("facebook/musicgen-small", False, "text", "musicgen-jax app --model small"),
)
EXAMPLES = ("a calm hiss", "a loud hum")
ABOUT = About("MIT licence", "Do what you like.", "It knows noise.", EXAMPLES, CHOICES)


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler(testing.random_model(MODEL).parts, slots=1, warm=False) as scheduler:
        scheduler.submit(request("warm", 1.0)).result()
        yield scheduler


@pytest.fixture(scope="module")
def server(scheduler):
    with serving(scheduler, max_duration=600.0, page=ABOUT) as server:
        yield server


@pytest.fixture
def page(browser, server):
    with opened(browser, server.url) as page:
        page.locator("body[data-ready]").wait_for()
        yield page


def request(text, seconds, seed=0):
    return Request(config=MODEL, descriptions=[text], duration=seconds, seed=seed)


class Pause:
    """A turn that takes a moment, as those of real models do."""

    def __enter__(self):
        time.sleep(0.02)

    def __exit__(self, *_):
        pass


@pytest.fixture
def unhurried(scheduler, monkeypatch):
    """Otherwise a long clip may be finished before a busy browser does what comes next."""
    monkeypatch.setattr(scheduler, "turn", Pause())


def test_a_typed_prompt_sounds_as_the_model_made_it_and_without_gaps(page, scheduler, unhurried):
    page.evaluate(RECORD)
    make(page, "a calm waltz", 20)
    says(page, "The clip is finished.")
    position = page.locator(".seek")
    wait_until(lambda: float(position.input_value()) > 0.5)  # it sounds: the context's clock runs
    heard = page.evaluate("() => heard")
    audio = scheduler.submit(request("a calm waltz", 20.0, 3)).result().audio[0]
    wanted = to_int16(apply_level(audio, "clip", 0.0))[0]
    samples = np.concatenate([np.array(part) for _, _, part in heard])
    np.testing.assert_array_equal(samples * 32768, wanted)
    assert len(heard) > 1
    assert {rate for _, rate, _ in heard} == {RATE}
    joined = [
        following - at == pytest.approx(len(part) / rate, abs=1e-6)
        for (at, rate, part), (following, _, _) in itertools.pairwise(heard)
    ]
    # A machine that others keep busy may fall behind; then the page waits, and says so.
    paused = page.evaluate("() => clips[0].underruns")
    assert joined.count(False) == paused < len(joined)
    assert ("Paused" in page.locator(".note").inner_text()) == (paused > 0)
    for form in ("WAV", "FLAC"):
        name, data = downloaded(page, f"Download {form}")
        assert name == f"a-calm-waltz-3.{form.lower()}"
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            np.testing.assert_array_equal(file.read(dtype="int16"), wanted)
            told = json.loads(file.comment)
        assert (told["prompt"], told["seed"], told["top_k"]) == ("a calm waltz", 3, 250)
    assert downloaded(page, "Download MP3")[1]
    told = json.loads(downloaded(page, "Download the settings")[1])
    assert told["program"] == str(scheduler.programs[0])


def test_variations_have_seeds_that_follow_and_stand_side_by_side(page):
    page.get_by_label("Variations").select_option("2")
    make(page, "two of a kind", 1, seed=8)
    page.locator(".facts").nth(1).wait_for()
    first, second = page.locator(".facts").all_inner_texts()
    assert "seed 8 " in first
    assert "seed 9 " in second
    left, right = (card.bounding_box() for card in page.locator(".clip").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    page.get_by_role("button", name="Again").nth(1).wait_for()


def test_stop_frees_the_slot_and_keeps_what_there_is(page, scheduler, unhurried):
    make(page, "a long hum", 500)
    page.locator(".pace", has_text="left").wait_for()
    wait_until(lambda: scheduler.busy)  # between two windows the clip is in no slot
    page.get_by_role("button", name="Stop").first.click()
    page.locator(".note", has_text="Stopped after").wait_for()
    wait_until(lambda: not scheduler.busy and not scheduler.waiting)
    assert downloaded(page, "Download WAV")[1]


def test_a_text_in_front_of_the_music_counts_from_the_next_window_on(page, unhurried):
    make(page, "a long hum", 500)
    page.locator(".steer").wait_for()
    page.get_by_label("Change the music to").fill("a loud hiss")
    page.get_by_label("Change the music to").press("Enter")
    said = page.locator(".steered", has_text="a loud hiss")
    said.filter(has_text="In this model a new text takes effect with the next window.").wait_for()
    page.get_by_role("button", name="Stop").first.click()
    page.locator(".note", has_text="Stopped after").wait_for()
    (cue,) = json.loads(downloaded(page, "Download the settings")[1])["schedule"]
    windows = request("", 500.0).windows
    starts = [windows[i].start + windows[i].prompt for i in range(1, len(windows))]
    assert cue["seconds"] in [start / MODEL.frame_rate for start in starts]


def test_a_clip_that_waits_says_its_place(page, scheduler, monkeypatch):
    monkeypatch.setattr(scheduler, "turn", threading.Lock())
    with scheduler.turn:  # no clip moves on
        make(page, "after that", 1)
        page.locator(".pace", has_text="number 1 in the queue").wait_for()
    says(page, "The clip is finished.")


def test_clips_and_settings_survive_a_reload_until_they_are_deleted(page):
    make(page, "a short hiss", 1, seed=41)
    says(page, "The clip is finished.")
    page.get_by_role("button", name="Again with another seed").click()
    page.locator(".facts").nth(1).wait_for()
    says(page, "The clip is finished.")
    page.reload()
    facts = page.locator(".facts")
    facts.nth(1).wait_for()
    first, second = facts.all_inner_texts()
    assert "seed 41" in second
    assert "seed 41" not in first
    assert page.get_by_label("Describe the music").input_value() == "a short hiss"
    assert f"seed {page.get_by_label('Seed', exact=True).input_value()} " in first
    data = downloaded(page, "Download WAV")[1]
    assert soundfile.info(io.BytesIO(data)).frames == MODEL.sample_rate
    page.get_by_role("button", name="Delete").first.click()
    says(page, "Deleted.")
    page.reload()
    facts.first.wait_for()
    assert facts.count() == 1


def test_without_a_server_the_page_says_so_and_goes_on_when_it_is_back(page):
    page.context.set_offline(True)
    make(page, "nobody hears this", 1)
    page.get_by_role("alert").filter(has_text="The server does not answer. Start").wait_for()
    assert page.get_by_label("Describe the music").input_value() == "nobody hears this"
    assert not page.locator(".clip").count()
    page.context.set_offline(False)
    says(page, "The server answers again.")
    page.get_by_role("button", name="Make music").click()
    says(page, "The clip is finished.")


def test_a_clip_that_is_cut_off_is_kept_and_needs_no_server(page, server, unhurried):
    make(page, "half of a hum", 500)
    page.locator(".steer").wait_for()
    for ticket in server.service.streams.values():
        ticket.cancel()  # the server cuts the connection, as when it dies
    page.locator(".note", has_text="Cut off after").wait_for()
    assert "the server went away" in page.locator(".note").inner_text()
    page.reload()
    page.locator(".note", has_text="Cut off after").wait_for()
    page.context.set_offline(True)
    assert 0 < len(samples(page)) < 500 * RATE
    page.get_by_role("button", name="Play", exact=True).click()
    wait_until(lambda: float(page.locator(".seek").input_value()) > 0)
    page.get_by_role("button", name="Download FLAC").click()  # which needs the server
    refused = page.get_by_role("alert").filter(has_text="There is no FLAC. The server does not")
    refused.wait_for()
    page.evaluate("() => player.pause()")  # it stays said when the clip is paused or played
    assert refused.is_visible()
    page.context.set_offline(False)


def test_what_the_server_refuses_is_said(page):
    make(page, "a \x07 bell", 1)
    page.get_by_role("alert").filter(has_text="control character U+0007").wait_for()
    assert not page.locator(".clip").count()


def test_a_slow_machine_waits_instead_of_stuttering(page):
    enough = """([speed, made, gap = 0.1]) => {
      player.from = 0;
      return player.enough({ end: null, rate: 100, total: 1000, frames: made, speed, gap });
    }"""
    assert page.evaluate(enough, [2.0, 50])
    assert not page.evaluate(enough, [0.5, 500])
    assert page.evaluate(enough, [0.5, 600])
    assert not page.evaluate(enough, [None, 500])
    assert not page.evaluate(enough, [2.0, 200, 1.5])  # it came in fits and starts
    assert page.evaluate(enough, [2.0, 300, 1.5])


def test_a_file_is_cut_and_the_music_begins_with_it(page, scheduler):
    sound = give(page, "Beginning", tone(4.0, 440, 660))
    assert "4.0 s" in sound.locator(".cut").inner_text()
    sound.get_by_label("Beginning: start").fill("2")
    assert "2.0 s, from 0:02.0 to 0:04.0" in sound.locator(".cut").inner_text()
    sound.get_by_role("button", name="Listen").click()
    sound.get_by_role("button", name="Pause").click()
    make(page, "more of this", 2)  # no longer than the beginning
    page.get_by_role("alert").filter(has_text="The beginning lasts 2.0 s").wait_for()
    make(page, "more of this", 3)
    says(page, "The clip is finished.")
    assert "goes on from tune.wav" in page.locator(".facts").inner_text()
    heard = samples(page)
    assert len(heard) == 3 * RATE
    given = soundfile.read(io.BytesIO(tone(4.0, 440, 660)), dtype="float32")[0]
    codes = scheduler.parts.encodec.encode(resample(given[None], 22050, RATE)[None, :, 2 * RATE :])
    decoded = np.asarray(scheduler.parts.encodec.decode(codes))[0, 0]
    expected = to_int16(apply_level(decoded[None], "clip", 0.0))[0]
    early = slice(0, RATE)  # the browser resamples in its own way, which a random codec exaggerates
    assert np.corrcoef(heard[early], expected[early])[0, 1] > 0.9
    # The sound comes back with the settings, also after a reload.
    page.reload()
    page.get_by_role("button", name="Use settings").click()
    page.get_by_role("region", name="Beginning").locator(".name", has_text="tune.wav").wait_for()
    assert "2.0 s" in page.get_by_role("region", name="Beginning").locator(".cut").inner_text()
    page.get_by_role("button", name="Make music").click()
    says(page, "The clip is finished.")
    np.testing.assert_array_equal(samples(page), heard)


def test_a_melody_is_drawn_as_the_model_hears_it_and_followed(page):
    sound = give(page, "Melody", tone(8.0, 440.0, 523.25))
    chroma = sound.get_by_role("img")
    chroma.wait_for()
    assert chroma.get_attribute("aria-label") == "The melody as the model hears it: A C"
    with page.expect_request("**/v1/audio/generate") as asked:
        make(page, "a waltz", 1)
    assert asked.value.headers["content-type"].startswith("multipart/form-data")
    says(page, "The clip is finished.")
    assert "melody of tune.wav" in page.locator(".facts").inner_text()
    followed = samples(page)
    sound.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Make music").click()
    says(page, "The clip is finished.")
    assert np.abs(samples(page).astype(int) - followed).max() > 50


@pytest.mark.parametrize("data", [b"", b"not a sound " * 999, tone(1.0, 440)[:40]])
def test_a_broken_file_is_refused_in_words(page, data):
    choose(page, "Melody", data, "broken.wav")
    page.get_by_role("alert").filter(has_text="broken.wav").wait_for()
    make(page, "all the same", 1)
    says(page, "The clip is finished.")


def test_a_file_is_dropped_on_a_sound(page):
    melody = page.get_by_role("region", name="Melody")
    first, second = ("first.wav", tone(1.0, 440)), ("second.wav", tone(1.0, 523))
    drop(melody, first, second)
    page.get_by_role("alert").filter(has_text="Drop one file, not 2.").wait_for()
    assert not melody.locator(".given").is_visible()
    drop(melody, second)
    melody.locator(".name", has_text="second.wav").wait_for()
    assert not melody.locator(".wrong").text_content()


def test_a_file_that_is_dropped_elsewhere_does_not_replace_the_page(page):
    drop(page.get_by_label("Describe the music"), ("tune.wav", tone(1.0, 440)))
    alert = page.get_by_role("alert").filter(has_text="Drop the file on")
    alert.wait_for()
    for sound in page.locator(".sound").all():
        assert sound.get_attribute("aria-label") in alert.inner_text()


def test_make_waits_for_a_file_that_is_still_read(page):
    page.evaluate(HOLD)
    choose(page, "Melody", tone(2.0, 440), "slow.wav")
    make(page, "a waltz", 1)
    says(page, "Waiting for the sound to be read.")
    page.wait_for_function("() => held.length === 1")
    assert not page.locator(".clip").count()
    page.evaluate("() => held[0]()")
    says(page, "The clip is finished.")
    assert "melody of slow.wav" in page.locator(".facts").inner_text()


def test_make_makes_nothing_if_the_file_turns_out_to_be_broken(page):
    page.evaluate(HOLD)
    choose(page, "Melody", b"not a sound " * 999, "broken.wav")
    make(page, "a waltz", 1)
    page.wait_for_function("() => held.length === 1")
    page.evaluate("() => held[0]()")
    page.get_by_role("alert").filter(has_text="broken.wav").wait_for()
    assert not page.locator(".clip").count()
    page.get_by_role("button", name="Make music").click()  # whoever has read that goes on without
    says(page, "The clip is finished.")


def test_of_two_files_the_last_one_counts_whichever_is_read_first(page):
    page.evaluate(HOLD)
    choose(page, "Melody", tone(2.0, 440), "first.wav")
    choose(page, "Melody", tone(2.0, 523), "second.wav")
    page.wait_for_function("() => held.length === 2")
    page.evaluate("() => held[1]()")
    name = page.get_by_role("region", name="Melody").locator(".name")
    name.filter(has_text="second.wav").wait_for()
    page.evaluate("() => held[0]()")
    page.wait_for_timeout(300)
    assert name.inner_text() == "second.wav"


def test_a_melody_may_be_removed_right_after_it_was_cut(page):
    sound = give(page, "Melody", tone(8.0, 440.0, 523.25))
    sound.get_by_label("Melody: start").fill("1")
    sound.get_by_role("button", name="Remove").click()
    page.wait_for_timeout(600)  # then the page would ask for its notes; an error would be noticed
    assert not sound.get_by_role("img").count()


def test_the_microphone(browser, server):
    with opened(browser, server.url, permissions=["microphone"]) as page:
        page.locator("body[data-ready]").wait_for()
        page.get_by_role("button", name="Melody: record").click()
        page.get_by_role("button", name="Melody: stop recording").wait_for()
        page.wait_for_timeout(2000)
        page.get_by_role("button", name="Melody: stop recording").click()
        sound = page.get_by_role("region", name="Melody")
        sound.locator(".name", has_text="your recording").wait_for()
        sound.get_by_role("img").wait_for()  # the server has heard it
        seconds = float(sound.locator(".cut").inner_text().split()[0])
        assert 1 <= seconds < 15
    with opened(browser, server.url, permissions=[]) as page:
        page.locator("body[data-ready]").wait_for()
        page.evaluate(
            "() => (navigator.mediaDevices.getUserMedia = async () => {"
            " throw new DOMException('no', 'NotAllowedError'); })"
        )
        page.get_by_role("button", name="Melody: record").click()
        page.get_by_role("alert").filter(has_text="allow it for this page").wait_for()


def test_another_tab_ends_a_recording_only_with_another_model(browser, server):
    with opened(browser, server.url, permissions=["microphone"]) as page:
        page.locator("body[data-ready]").wait_for()
        page.get_by_role("button", name="Melody: record").click()
        stop = page.get_by_role("button", name="Melody: stop recording")
        stop.wait_for()
        page.evaluate("() => relearn()")  # as after each clip of another tab
        page.wait_for_timeout(500)
        assert stop.count() == 1

        def other(route):
            told = route.fetch().json()
            told |= {"model": "other", "started": told["started"] + 9}
            route.fulfill(json=told)

        page.route("**/app/about", other)
        page.wait_for_timeout(700)  # so that there is something to keep
        page.evaluate("() => relearn()")
        melody = page.get_by_role("region", name="Melody")
        melody.locator(".name", has_text="your recording").wait_for()
        page.get_by_role("button", name="Melody: record").wait_for()
        assert page.evaluate("() => about.model") == "other"
        page.unroute_all(behavior="wait")


def test_make_ends_a_recording_and_uses_it(browser, server):
    with opened(browser, server.url, permissions=["microphone"]) as page:
        page.locator("body[data-ready]").wait_for()
        record = page.get_by_role("button", name="Melody: record")
        record.evaluate("button => (button.click(), button.click())")  # it records once
        page.get_by_role("button", name="Melody: stop recording").wait_for()
        page.wait_for_timeout(1500)
        make(page, "what was hummed", 1)
        says(page, "The clip is finished.")
        assert "melody of your recording" in page.locator(".facts").inner_text()
        page.wait_for_timeout(500)
        assert record.inner_text() == "Record"


def test_a_clip_is_continued_from_here_and_used_as_a_melody(page):
    make(page, "a first part", 8)
    says(page, "The clip is finished.")
    first = samples(page)
    page.evaluate("() => player.pause()")  # if it has not come to its end by now
    page.locator(".seek").fill("7")
    page.get_by_role("button", name="Continue from here").click()
    sound = page.get_by_role("region", name="Beginning")
    cut = sound.locator(".cut").inner_text()
    assert "5.0 s, from 0:02.0 to 0:07.0" in cut
    assert "keeps what comes before" in cut
    make(page, "a second part", 9)
    says(page, "The clip is finished.")
    whole = samples(page)
    assert len(whole) == 11 * RATE  # two seconds that the first part gave, and nine that were made
    np.testing.assert_array_equal(whole[: 2 * RATE], first[: 2 * RATE])
    page.get_by_role("button", name="Use as melody").first.click()
    page.get_by_role("region", name="Melody").get_by_role("img").wait_for()


def test_a_clip_that_another_model_made_is_not_made_again_without_its_melody(page):
    give(page, "Melody", tone(2.0, 440))
    make(page, "a waltz", 1)
    says(page, "The clip is finished.")

    def other(route):
        told = route.fetch().json()
        told |= {"model": "other", "started": told["started"] + 9, "takes": ["continue_from"]}
        route.fulfill(json=told)

    page.route("**/app/about", other)
    page.evaluate("() => tabs.onmessage()")  # as another tab says that something has changed
    page.wait_for_function("() => about.model === 'other'")
    page.get_by_role("button", name="Again").first.click()
    alert = page.get_by_role("alert").filter(has_text="other takes no melody: choose debug")
    alert.wait_for()
    assert page.locator(".clip").count() == 1
    with page.expect_request("**/v1/audio/generate") as asked:
        page.get_by_role("button", name="Make music").click()
    assert asked.value.post_data_json["model"] == "other"  # and never another one's music
    page.get_by_role("alert").filter(has_text="there is no model 'other' here").wait_for()
    page.unroute_all(behavior="wait")  # the page looks once more which model there is


def test_another_model_is_chosen(page, server):
    chosen = []
    server.service.switch = chosen.append
    models = page.get_by_label("Model", exact=True)
    models.select_option("facebook/musicgen-small")
    missing = page.locator("#missing")
    missing.filter(has_text="musicgen-jax app --model small").wait_for()
    assert models.input_value() == "debug"
    assert not chosen
    give(page, "Melody", tone(2.0, 440))
    models.select_option("other")
    missing.filter(has_text="Loading other").wait_for()
    assert page.get_by_role("button", name="Make music").is_disabled()
    assert chosen == ["other"]

    def other(route):
        told = route.fetch().json()
        told |= {"model": "other", "started": told["started"] + 9, "takes": ["melody"]}
        route.fulfill(json={**told, "sample_rate": 8000, "limits": "It knows birds."})

    page.route("**/app/about", other)
    says(page, "other is ready.")
    assert models.input_value() == "other"
    assert page.get_by_role("button", name="Make music").is_enabled()
    page.get_by_text("other: licence and limits").click()
    page.get_by_text("It knows birds.").wait_for()
    assert not page.get_by_role("region", name="Beginning").count()
    page.get_by_role("region", name="Melody").locator(".name", has_text="tune.wav").wait_for()


@pytest.mark.parametrize(
    "window", [{}, {**PHONE, "color_scheme": "dark"}], ids=["desktop", "dark phone"]
)
def test_axe_finds_nothing_serious(browser, server, window, unhurried):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def serious(page):
        found = axe.run(page).response["violations"]
        return [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    with opened(browser, server.url, **window) as page:
        page.locator("body[data-ready]").wait_for()
        assert serious(page) == []
        give(page, "Melody", tone(2.0, 440)).get_by_role("img").wait_for()
        make(page, "heard by everybody", 500)
        page.locator(".pace", has_text="left").wait_for()
        page.get_by_label("Change the music to").fill("a change")
        page.get_by_role("button", name="Steer", exact=True).click()
        page.locator(".steered", has_text="a change").wait_for()
        page.get_by_text("Steer away from").click()
        assert serious(page) == []
        for button in page.locator(".clip button:visible").all() if window else ():
            assert button.bounding_box()["height"] >= 44
        page.get_by_role("button", name="Stop").first.click()
        page.locator(".note", has_text="Stopped after").wait_for()
        for summary in page.locator("summary:visible").all():
            summary.click()
        assert serious(page) == []


def test_the_spectrogram_shows_what_sounds(page):
    peak = """() => {
      const [real, imaginary] = [new Float32Array(64), new Float32Array(64)];
      real.forEach((_, i) => (real[i] = Math.cos((2 * Math.PI * 5 * i) / 64)));
      fourier(real, imaginary);
      return Array.from(real, (re, k) => Math.round(Math.hypot(re, imaginary[k])));
    }"""
    assert page.evaluate(peak) == [32 if k in (5, 59) else 0 for k in range(64)]
    make(page, "a wide noise", 1)
    says(page, "The clip is finished.")
    colors = page.locator(".clip canvas").evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data.buffer)).size"
    )
    assert colors > 50


def test_a_clip_made_in_one_tab_appears_in_the_other_and_leaves_it(page, server):
    other = page.context.new_page()
    other.goto(server.url)
    other.locator("body[data-ready]").wait_for()
    make(page, "two tabs", 1)
    other.locator(".clip", has_text="two tabs").wait_for()
    other.get_by_role("button", name="Delete").click()
    page.locator("#empty").wait_for()


def test_a_clip_that_the_browser_cannot_keep_stays_on_its_page(page, server):
    other = page.context.new_page()
    other.goto(server.url)
    other.locator("body[data-ready]").wait_for()
    page.evaluate("""() => {
      const { run } = kept;
      kept.run = (mode, work) => (mode === "readonly" ? run(mode, work) : Promise.reject("full"));
    }""")
    make(page, "for this page alone", 1)
    says(page, "The clip is finished.")
    page.locator("#kept", has_text="cannot keep more clips").wait_for()
    make(other, "for all pages", 1)
    page.locator(".clip", has_text="for all pages").wait_for()
    assert page.locator(".clip", has_text="for this page alone").count() == 1
    assert len(samples(page)) == RATE


def test_two_tabs_make_music_at_once_and_stop_only_their_own(page, server, unhurried):
    other = page.context.new_page()
    other.goto(server.url)
    other.locator("body[data-ready]").wait_for()
    make(page, "the first tab", 500)
    page.locator(".steer").wait_for()
    make(other, "the second tab", 1)
    says(other, "The clip is finished.")  # it had its turn between two windows of the other
    assert len(samples(other)) == RATE
    page.locator(".clip", has_text="the second tab").wait_for()
    other.keyboard.press("Escape")
    assert page.locator(".steer:visible").count() == 1
    page.get_by_role("button", name="Stop").first.click()
    page.locator(".note", has_text="Stopped after").wait_for()


def test_a_phone(browser, server):
    with opened(browser, server.url, **PHONE) as page:
        page.get_by_role("button", name="a calm hiss").tap()
        says(page, "The clip is finished.")
        page.get_by_text("What to avoid").tap()
        page.get_by_text("licence and limits").tap()
        page.get_by_text("All settings").tap()
        assert page.locator("html").evaluate("html => html.scrollWidth") == 390
        for button in page.locator("button:visible, summary:visible").all():
            assert button.bounding_box()["height"] >= 44
        assert page.get_by_text("It knows noise.").is_visible()


def test_the_keyboard_alone_and_every_control_has_a_name(page):
    page.get_by_label("Describe the music").focus()
    page.keyboard.type("keys")
    page.keyboard.press("Control+Enter")
    says(page, "The clip is finished.")
    play = page.locator(".play")
    play.filter(visible=True).focus()
    page.get_by_role("button", name="Pause").wait_for()
    wait_until(lambda: float(page.locator(".seek").input_value()) > 0)
    page.keyboard.press("Space")
    page.get_by_role("button", name="Play").wait_for()
    page.keyboard.press("Tab")
    before = float(page.locator(".seek").input_value())
    page.keyboard.press("Home")
    assert float(page.locator(".seek").input_value()) < before
    nameless = page.locator("button, input, select, textarea, progress").evaluate_all(
        "all => all.filter(e => !(e.ariaLabel || e.textContent || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
