"""The page of a listening study in a real browser."""

import itertools

import pytest

from musicgen_jax.listening.answers import Answers
from tests.helpers.browser import PHONE, opened
from tests.helpers.studies import Process, make_study, serving

pytestmark = pytest.mark.browser
SAVED = "All scores saved"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study whose clips must be heard in full: the study and its folder."""
    root = tmp_path_factory.mktemp("whole")
    return make_study(root), root / "study"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A study whose clips may be scored at once."""
    root = tmp_path_factory.mktemp("quick")
    return make_study(root, must_hear=0.0), root / "study"


@pytest.fixture(scope="module")
def whole_url(whole):
    with serving(whole[1]) as process:
        yield process.url


@pytest.fixture(scope="module")
def quick_url(quick):
    with serving(quick[1]) as process:
        yield process.url


def expect(locator, *words):
    """Waits until an element is there and has these words."""
    for word in words:
        locator.filter(has_text=word).wait_for()


def start(page, name=""):
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Start").click()
    page.locator(".letter:enabled").first.wait_for()


def rows(page):
    return page.locator(".clip").all()


def written(made):
    """What is on the disk: {rater's name: {(clip, scale): score}}."""
    found, folder = made
    with Answers(folder, found, create=False) as store:
        return {
            rater.name: {(a.clip, a.scale): a.score for a in store.of(rater)}
            for rater in store.raters()
        }


def score_piece(page, base):
    """Moves every slider of a piece of `quick`; the scores in the order of the page."""
    scores = []
    for i, slider in enumerate(page.locator(".score input").all()):
        scores.append(base + i)
        slider.fill(str(base + i))
    return scores


# --- A rater ----------------------------------------------------------------------------------


def test_a_whole_study_by_keyboard_alone(browser, whole, whole_url):
    with opened(browser, whole_url) as page:
        press = page.keyboard.press
        page.get_by_role("heading", name="What do you hear?").wait_for()
        press("Tab")
        page.keyboard.type("Ada")
        press("Enter")
        shown = []
        for number in (1, 2):
            page.get_by_role("heading", name=f"Piece {number} of 2").wait_for()
            page.locator(".letter:enabled").first.wait_for()
            press("n")  # too early: it says what is missing and goes there
            expect(page.get_by_role("alert"), "Clip A has no score yet: Overall quality.")
            for i, row in enumerate(rows(page)):
                press(str(i + 1))
                row.locator("input:enabled").first.wait_for()
                press(str(i + 1))
                for step in range(row.locator("input").count()):
                    press("PageUp" if i % 2 else "PageDown")
                    for _ in range(i + step):
                        press("ArrowRight")
                    press("Tab")
                shown += [int(text) for text in row.locator(".value").all_inner_texts()]
            press("n")
        page.get_by_role("heading", name="Thank you").wait_for()
        expect(page.locator("#done-text"), "every score is saved")
    answers = written(whole)["Ada"]
    assert sorted(answers.values()) == sorted(shown)
    assert len(answers) == 2 * 4 * 2 + 4  # two pieces of four clips, one with a melody
    assert len(set(answers.values())) > 5


def test_what_is_missing_stays_said_while_the_melody_still_loads(browser, tmp_path):
    make_study(tmp_path, pieces=1)
    held = []
    with serving(tmp_path / "study") as process, opened(browser, process.url) as page:
        count = itertools.count(1)  # the melody comes after the four clips
        page.route("**/clips/*", lambda r: held.append(r) if next(count) == 5 else r.continue_())
        start(page)
        page.keyboard.press("n")
        expect(page.get_by_role("alert"), "Clip A has no score yet")
        held.pop().continue_()
        expect(page.locator("#announce"), "The clips are loaded.")
        expect(page.get_by_role("alert"), "Clip A has no score yet")


def test_a_clip_that_does_not_load_is_named_and_asked_for_again(browser, whole_url):
    with opened(browser, whole_url) as page:
        page.route("**/clips/*", lambda route: route.fulfill(status=503), times=1)
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("alert"), "A clip cannot be loaded")
        page.locator(".letter:enabled").first.wait_for()
        page.locator("#unloaded:empty").wait_for(state="attached")


def test_a_clip_is_scored_after_it_was_heard(browser, whole_url):
    with opened(browser, whole_url) as page:
        start(page)
        first, second = rows(page)[:2]
        assert not first.locator("input:enabled").count()
        expect(first, "Listen to the whole clip first.")
        first.get_by_role("button").click()
        page.locator("#seek").fill("0.8")  # jumping to the end is not hearing it
        page.wait_for_timeout(150)
        assert not first.locator("input:enabled").count()
        first.locator("input:enabled").first.wait_for()  # the loop comes round
        expect(page.locator("#announce"), "Clip A can be scored now.")
        assert not second.locator("input:enabled").count()
        # It stays open after a reload, since it was heard.
        page.reload()
        page.locator(".letter:enabled").first.wait_for()
        assert rows(page)[0].locator("input:enabled").count()


def test_clips_follow_each_other_at_the_same_place(browser, whole_url):
    with opened(browser, whole_url) as page:
        start(page)
        for i in (1, 2):
            page.keyboard.press(str(i))
            rows(page)[i - 1].locator("input:enabled").first.wait_for()
        page.keyboard.press("1")
        page.keyboard.press("r")
        page.wait_for_timeout(500)
        page.keyboard.press("2")
        assert rows(page)[1].get_by_role("button").get_attribute("aria-label") == "Pause clip B"
        assert float(page.locator("#seek").input_value()) > 0.3
        page.keyboard.press(" ")
        expect(page.locator("#time"), "/ 0:01")
        assert page.locator("#play").get_attribute("aria-label") == "Play clip B"


def test_clips_are_converted_when_they_are_loaded(browser, whole, whole_url):
    """At the device's rate: a player that converts while it plays only interpolates."""
    with opened(browser, whole_url) as page:
        start(page)
        rates = page.locator("body").evaluate(
            "() => [player.context.sampleRate, ...[...player.buffers.values()]"
            ".map((buffer) => buffer.sampleRate)]"
        )
    assert len(rates) >= 5
    assert len(set(rates)) == 1
    assert rates[0] != whole[0].sample_rate


def test_without_loop_a_clip_ends(browser, whole_url):
    with opened(browser, whole_url) as page:
        start(page)
        page.keyboard.press("l")
        assert not page.get_by_label("Loop").is_checked()
        page.keyboard.press("1")
        page.get_by_role("button", name="Pause clip A").first.wait_for()
        page.get_by_role("button", name="Play clip A").first.wait_for()
        assert float(page.locator("#seek").input_value()) == 0


def test_a_rater_goes_on_where_they_stopped(browser, quick, quick_url):
    with opened(browser, quick_url) as page:
        start(page, "Grace")
        score_piece(page, 10)
        expect(page.get_by_role("status"), SAVED)
        page.get_by_role("button", name="Next piece").click()
        page.get_by_role("heading", name="Piece 2 of 2").wait_for()
        link = page.url
        assert "#rater=" in link
        page.reload()
        page.get_by_role("heading", name="Piece 2 of 2").wait_for()
        page.get_by_role("button", name="Back").click()
        texts = page.locator(".clip .value").all_inner_texts()
        assert texts == [str(10 + i) for i in range(len(texts))]
    with opened(browser, link) as page:  # another browser, with the link
        page.get_by_role("heading", name="Piece 2 of 2").wait_for()
        page.get_by_role("button", name="Not you?").click()
        page.get_by_role("heading", name="What do you hear?").wait_for()
        page.reload()
        page.get_by_role("heading", name="What do you hear?").wait_for()


def test_a_click_on_a_slider_that_moves_nothing_is_an_answer(browser, quick, quick_url):
    with opened(browser, quick_url) as page:
        start(page, "Click")
        slider = page.locator(".score input").first
        box = slider.bounding_box()
        slider.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
        expect(page.get_by_role("status"), SAVED)
    ((score,),) = (tuple(written(quick)["Click"].values()),)
    assert abs(score - 50) <= 1


# --- Several, and a server that dies ----------------------------------------------------------


def test_several_raters_at_once_while_the_server_is_killed(browser, quick):
    """Every score that was made in any window is on the disk in the end."""
    process = Process(quick[1])
    names = [f"rater {i}" for i in range(4)]
    contexts = [opened(browser, process.url) for _ in names]
    pages = [context.__enter__() for context in contexts]
    for page, name in zip(pages, names, strict=True):
        start(page, name)
    made: dict[str, list[int]] = {name: [] for name in names}
    for i, slider in enumerate(["nth=0", "nth=1", "nth=2", "nth=3"]):
        for number, (page, name) in enumerate(zip(pages, names, strict=True)):
            score = 20 * number + i + 1
            page.locator(".score input").locator(slider).fill(str(score))
            made[name].append(score)
        if i == 1:
            process.kill()  # some of these scores may be on their way
        if i == 2:
            for page in pages:
                expect(page.get_by_role("status"), "Not saved yet", "kept in this browser")
    process = Process(quick[1], port=process.port)
    for page in pages:
        expect(page.get_by_role("status"), SAVED)
    process.kill()
    on_disk = written(quick)
    for name in names:
        assert sorted(on_disk[name].values()) == made[name]
    for context in contexts:
        context.__exit__(None, None, None)


def test_a_window_that_is_closed_while_the_server_is_dead(browser, quick):
    process = Process(quick[1])
    with opened(browser, process.url) as page:
        start(page, "Closed")
        process.kill()
        page.locator(".score input").first.fill("77")
        expect(page.get_by_role("status"), "the server does not answer")
        later = page.context.new_page()
        page.close()
        process = Process(quick[1], port=process.port)
        later.goto(process.url)
        expect(later.get_by_role("status"), SAVED)
        process.kill()
    assert list(written(quick)["Closed"].values()) == [77]


def test_the_page_says_saved_only_after_the_server_did(browser, quick, quick_url):
    with opened(browser, quick_url) as page:
        start(page, "Slow")
        held = []
        page.route("**/api/answers", lambda route: held.append(route))
        page.locator(".score input").first.fill("33")
        expect(page.get_by_role("status"), "Saving")
        page.wait_for_timeout(600)
        assert held
        assert SAVED not in page.locator("#saved").inner_text()
        held[0].continue_()
        expect(page.get_by_role("status"), SAVED)


# --- Tokens, phones, labels -------------------------------------------------------------------


def test_a_token_in_the_link_opens_the_study(browser, quick):
    with serving(quick[1], "--token", "twelve letters") as process:
        with opened(browser, process.url) as page:
            page.get_by_role("button", name="Start").wait_for()
            assert "token" not in page.url
            start(page)
        with opened(browser, process.url.partition("#")[0]) as page:
            page.get_by_role("button", name="Start").click()
            page.get_by_label("Token").fill("something else")
            page.get_by_role("button", name="Enter").click()
            expect(page.get_by_role("alert"), "not the study's token")
            page.get_by_label("Token").fill("twelve letters")
            page.get_by_role("button", name="Enter").click()
            start(page)


def test_a_phone(browser, quick, quick_url):
    with opened(browser, quick_url, **PHONE) as page:
        start(page, "Phone")
        page.get_by_text("Keyboard").tap()
        width = page.locator("html").evaluate("html => html.scrollWidth")
        assert width == 390
        for button in page.locator("main button:visible, label.check:visible").all():
            assert button.bounding_box()["height"] >= 44
        rows(page)[0].get_by_role("button").tap()
        page.get_by_role("button", name="Pause clip A").first.wait_for()
        page.locator(".score input").first.tap()
        expect(page.get_by_role("status"), SAVED)
    assert len(written(quick)["Phone"]) == 1


def test_everything_has_a_name_of_its_own(browser, quick_url):
    with opened(browser, quick_url) as page:
        start(page)
        sliders = page.get_by_role("slider")
        names = [each.get_attribute("aria-label") for each in sliders.all()]
        assert "Clip A: Overall quality" in names
        assert len(set(names)) == len(names) > 8
        nameless = page.locator("button:visible, input:visible").evaluate_all(
            "all => all.filter(e => !(e.ariaLabel || e.innerText || e.labels?.length)).length"
        )
        assert nameless == 0
        slider = page.locator(".score input").first
        assert slider.get_attribute("aria-valuetext") == "no score yet"
        slider.fill("81")
        assert slider.get_attribute("aria-valuetext") == "81, excellent"


def test_dark_mode_is_dark(browser, quick_url):
    shades = {}
    for scheme in ("light", "dark"):
        with opened(browser, quick_url, color_scheme=scheme) as page:
            color = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
            shades[scheme] = sum(int(part) for part in color[4:-1].split(","))
    assert shades["dark"] < 150
    assert shades["light"] > 650
