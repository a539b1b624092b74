"""The page in a real browser: what a person does with it, and what it must never do."""

from __future__ import annotations

import pytest
import torch

from tests.gallery.records import history_of
from tests.report.pages import audit, page_of, runs, set_of
from xai_callbacks.errors import ConfigurationError

GRAMS = {f"a.rather.long.name.of.a.layer.{place}": torch.eye(36) for place in range(3)}
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    probes = set_of()
    return page_of(tmp_path_factory.mktemp("run"), runs(probes)["leaning"], probes)


def card(page, place):
    return page.locator(f"#probe-{place}")


def shown(page):
    return page.locator(".card:visible").evaluate_all("cards => cards.map((card) => card.dataset.name)")


def heat(page, place, side="a"):
    image = card(page, place).locator(f".{side} img")
    return image.get_attribute("src"), image.get_attribute("alt")


def test_the_first_screen_says_which_one_to_ship_and_why(visit, compared):
    page = visit(compared)
    seen = page.locator("#verdict").inner_text()
    for words in ("Ship sound", "Do not ship leaning", "ALARM cue patch", "beyond noise: lower"):
        assert words in seen
    assert page.locator(".lead").bounding_box()["y"] < 200
    for what in (".models", ".evidence", ".numbers"):
        assert page.locator(what).bounding_box()["y"] < 900


def test_the_slider_of_a_probe_changes_its_heat_alone(visit, compared):
    page = visit(compared, anchor="#probes")
    before, other = heat(page, 0), heat(page, 1)
    slider = card(page, 0).locator(".epoch input")
    slider.fill("0")
    after = heat(page, 0)
    assert after[0] != before[0]
    assert "epoch 2, Why" in before[1]
    assert "before training, Why" in after[1]
    assert "before training" in card(page, 0).locator(".a figcaption").inner_text()
    assert slider.get_attribute("aria-valuetext") == "before training"
    assert heat(page, 1) == other


def test_the_slider_of_all_probes_moves_those_below_as_they_come_into_view(visit, compared):
    page = visit(compared)
    far = 35
    before = heat(page, far)
    page.locator("#epoch").fill("0")
    assert heat(page, far) == before
    card(page, far).scroll_into_view_if_needed()
    page.wait_for_function("before => document.querySelector('#probe-35 .a img').src !== before", arg=before[0])
    assert card(page, far).locator(".epoch output").inner_text() == "before training"


def test_other_questions_have_other_heat(visit, compared):
    page = visit(compared, anchor="#probes")
    before = heat(page, 0)
    page.locator("#asked").select_option("1")
    assert heat(page, 0)[0] != before[0]
    assert "rather than" in card(page, 0).locator(".a figcaption").inner_text()


def test_the_border_moves_between_two_models(visit, compared):
    page = visit(compared, anchor="#probes")
    assert not card(page, 0).locator(".border").is_visible()
    page.locator("#view label", has_text="Swipe").click()
    stages = [card(page, 0).locator(f".{side} .stage") for side in "ab"]
    assert stages[0].bounding_box() == stages[1].bounding_box()
    clip = "stage => getComputedStyle(stage).clipPath"
    assert stages[1].evaluate(clip) == "inset(0px 0px 0px 50%)"
    border = card(page, 0).locator(".border")
    box = stages[0].bounding_box()
    assert border.bounding_box()["height"] == pytest.approx(box["height"], abs=1)
    border.fill("20")
    assert stages[1].evaluate(clip) == "inset(0px 0px 0px 20%)"
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.9 * box["height"])
    assert float(stages[1].evaluate(clip).split()[-1].rstrip("%)")) == pytest.approx(75, abs=2)


def test_the_difference_is_a_third_view(visit, compared):
    page = visit(compared, anchor="#probes")
    page.locator("#view label", has_text="Difference").click()
    assert card(page, 0).locator(".d").is_visible()
    assert not card(page, 0).locator(".a").is_visible()
    # Heat of A stands at the upper left, that of B in the middle: their difference is strongest there.
    assert "strongest at the middle centre" in heat(page, 0, "d")[1]
    assert heat(page, 0, "d")[0] not in (heat(page, 0, "a")[0], heat(page, 0, "b")[0])


def test_heat_can_be_switched_off(visit, run):
    page = visit(run, anchor="#probes")
    image = card(page, 0).locator(".a img")
    assert image.evaluate("each => getComputedStyle(each).visibility") == "visible"
    page.locator("#heat").uncheck()
    assert image.evaluate("each => getComputedStyle(each).visibility") == "hidden"


@pytest.mark.parametrize(
    ("control", "option", "count"),
    [
        ("#class", "dog", 12),
        ("#group", "left", 18),
        ("#answer", "0 wrong", 8),
        ("#answer", "1 right", 35),
        ("#answer", "gained", 7),
        ("#answer", "lost", 0),
    ],
)
def test_filters_hide_the_others(visit, compared, control, option, count):
    page = visit(compared)
    page.locator(control).select_option(option)
    assert len(shown(page)) == count
    assert page.locator("#count").inner_text() == f"{count} of 36 probes"
    page.locator("#reset").click()
    assert len(shown(page)) == 36


def test_cards_are_sorted_by_what_is_chosen(visit, compared):
    page = visit(compared)
    names = shown(page)
    page.locator("#sort").select_option("group")
    assert shown(page) == names[::2] + names[1::2]
    page.locator("#sort").select_option("energy")
    assert shown(page) == names[::-1]
    page.locator("#order").select_option("1")
    assert shown(page) == names
    page.locator("#least").fill("30")
    assert shown(page) == names[30:]
    page.locator("#least").fill("")
    page.locator("#order").select_option("-1")
    page.locator("#sort").select_option("says")
    assert set(shown(page)[:7]) == set(names[1:8])
    page.locator("#sort").select_option("cue/patch/pull")
    page.locator("#of").select_option("d")
    assert card(page, 0).locator(".value").inner_text() == "-0.400"


def test_keys_move_between_probes_and_epochs(visit, compared):
    page = visit(compared)
    card(page, 0).focus()
    focused = "document.activeElement.id"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "probe-1"
    outline = card(page, 1).evaluate("each => getComputedStyle(each).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("ArrowDown")
    assert card(page, 1).locator(".epoch output").inner_text() == "epoch 1"
    page.keyboard.press("ArrowUp")
    assert card(page, 1).locator(".epoch output").inner_text() == "epoch 2"
    page.keyboard.press("End")
    assert page.evaluate(focused) == "probe-35"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == "probe-0"
    page.keyboard.press("v")
    assert page.evaluate("document.documentElement.dataset.view") == "swipe"
    page.keyboard.press("q")
    assert page.locator("#asked").input_value() == "1"
    page.keyboard.press("h")
    assert not page.locator("#heat").is_checked()
    assert page.locator(".card[tabindex='0']").count() == 1


def test_help_opens_and_closes_by_keys(visit, compared):
    page = visit(compared)
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(visit, run, scheme):
    page = visit(run, color_scheme=scheme)
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    assert before == {"light": "rgb(250, 249, 246)", "dark": "rgb(20, 20, 23)"}[scheme]
    page.locator("#theme").click()
    assert page.evaluate(paper) != before
    page.locator("#theme").click()
    assert page.evaluate(paper) == before


def test_without_a_script_all_but_controls_is_there(visit, compared):
    page = visit(compared, java_script_enabled=False)
    for what in (".lead", ".numbers table", ".curves svg", "#probe-0 .a img", "#probe-0 .b img", ".flips"):
        assert page.locator(what).first.is_visible(), what
    for what in (".toolbar", ".border", ".epoch", "#theme"):
        assert not page.locator(what).first.is_visible(), what
    assert page.locator("#probe-0 .a img").evaluate("each => each.naturalWidth") > 1


def test_paper_shows_the_latest_heat_and_no_controls(visit, compared):
    page = visit(compared, anchor="#probes")
    latest = heat(page, 0)[0]
    page.locator("#epoch").fill("0")
    assert heat(page, 0)[0] != latest
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert heat(page, 0)[0] == latest
    assert heat(page, 35)[1].count("epoch 2") == 1
    assert not page.locator(".toolbar").is_visible()
    assert len(page.pdf()) > 50_000


@pytest.mark.parametrize("view", ["Side by side", "Swipe", "Difference"])
def test_paper_shows_both_models_side_by_side_whatever_was_looked_at(visit, compared, view):
    page = visit(compared, anchor="#probes")
    page.locator("#view").get_by_text(view).click()
    page.emulate_media(media="print")
    a, b = (page.locator(f"#probe-0 .{side} .stage") for side in "ab")
    assert a.is_visible()
    assert b.is_visible()
    assert a.bounding_box()["x"] + a.bounding_box()["width"] <= b.bounding_box()["x"]
    assert not page.locator("#probe-0 .d").is_visible()


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_nothing_is_wider_than_the_screen(visit, compared, run, width):
    for path in (compared, run):
        page = visit(path, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_names_are_text(visit, tmp_path):
    names = [f"{place} {HOSTILE}" for place in range(36)]
    probes = set_of(names=names, class_names=("cat" + HOSTILE, "dog", "owl</script>"))
    given = {f"{name}{HOSTILE}": history for name, history in runs(probes).items()}
    page = visit(page_of(tmp_path, given, probes, title=HOSTILE))
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.title() == HOSTILE
    assert page.locator("#name-3").inner_text() == names[3]
    card(page, 0).locator(".epoch input").fill("0")
    assert HOSTILE in heat(page, 0)[1]
    assert page.locator("img[onerror], img[src=x]").count() == 0
    assert page.locator("script").count() == 2


def test_long_names_are_broken(visit, tmp_path):
    long = "x" * 300
    probes = set_of(12, names=[f"{place}{long}" for place in range(12)], class_names=(long, "dog", "owl"))
    given = {f"{name}{long}": history for name, history in runs(probes).items()}
    for width in (390, 1440):
        page = visit(page_of(tmp_path, given, probes, title=long), width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_no_table_is_cut_on_a_small_desktop(visit, tmp_path):
    probes = set_of()
    records = [audit(probes, 1, wrong=range(3 * place), place=place, grams=GRAMS) for place in range(2)]
    given = {"a": history_of(records[0]), "b": history_of(records[1])}
    page = visit(page_of(tmp_path, given, probes), width=1280)
    assert page.locator("#maps .scroll").count() == 2
    cut = "each => each.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"
    assert page.locator(".scroll").evaluate_all(cut) == []


def test_controls_fit_a_phone_whatever_the_names(visit, tmp_path):
    probes = set_of(12, class_names=("a very long name of a class that goes on and on", "dog", "owl"))
    models = {f"{'a_long_name_' * 8}{place}": history_of(audit(probes, 1, place=place)) for place in range(3)}
    page = visit(page_of(tmp_path, models, probes), width=390)
    inside = page.locator(".toolbar").bounding_box()
    for control in page.locator(".toolbar select, .toolbar input, .toolbar button").all():
        box = control.bounding_box()
        assert box["x"] + box["width"] <= inside["x"] + inside["width"]
    label = page.locator("label", has=page.locator("#other"))
    assert label.bounding_box()["height"] < 50


def test_captions_of_wide_pictures_stand_below_them(visit, tmp_path):
    from tests.gallery.records import audit_of, probes_of

    probes = probes_of(8, size=(24, 60))
    page = visit(page_of(tmp_path, history_of(audit_of(probes)), probes))
    photo, caption = (page.locator(f".evidence .a {what}").first.bounding_box() for what in (".stage", "figcaption"))
    assert 0 <= caption["y"] - photo["y"] - photo["height"] < 15


def test_long_names_do_not_make_towers(visit, tmp_path):
    long = "a very long name that goes on and on and on and on and on and on, "
    probes = set_of(12, class_names=(f"{long}one", f"{long}two", "owl"), names=[f"{long * 3}{n}" for n in range(12)])
    models = {f"{long * 3}{place}": history_of(audit(probes, 1, wrong=[place], place=place)) for place in range(3)}
    page = visit(page_of(tmp_path, models, probes))
    assert page.locator(".lead").bounding_box()["height"] < 330
    for pair in page.locator(".evidence .pair").all():
        assert pair.bounding_box()["height"] < 220
    said = page.locator(".evidence .said").all_inner_texts()
    assert any("one" in each for each in said)
    assert any("two" in each for each in said)
    page.locator("summary", has_text="Names in full").click()
    whole = page.locator("#about dd").all_inner_texts()
    assert sorted(whole) == sorted([*models, f"{long}one", f"{long}two"])


def test_names_turn_no_text_after_them(visit, tmp_path):
    turned = "\u202eolleh \u2067"
    probes = set_of(12)
    given = {f"{name}{turned}": history for name, history in runs(probes).items()}
    page = visit(page_of(tmp_path, given, probes, title=turned))
    card(page, 0).locator(".epoch input").fill("0")
    assert not set("\u202e\u2067") & set(page.content())
    assert r"\u202eolleh \u2067" in page.locator(".lead").inner_text()
    assert page.locator(".models bdi").count() == 2


def test_keys_and_findings_are_text(visit, tmp_path):
    from dataclasses import replace

    probes = set_of()
    record = audit(probes, 1, pull=0.5)
    finding = replace(record.findings[0], key=f"alarm/cue/{HOSTILE}", sentence=HOSTILE, state=HOSTILE)
    values = record.per_probe | {HOSTILE: torch.arange(36).double()}
    record = replace(record, findings=(finding,), per_probe=values, notes=(HOSTILE,), checkpoint=HOSTILE, groups=())
    page = visit(page_of(tmp_path, history_of(record), probes))
    page.locator("#sort").select_option(HOSTILE)
    assert card(page, 5).locator(".value").inner_text() == "5.00"
    assert page.locator("img[onerror], img[src=x]").count() == 0


def test_the_policy_lets_nothing_else_through(browser, compared):
    page = browser.new_page()
    page.goto(compared.as_uri())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.x = 1'}))"
    )
    assert page.evaluate("window.x") is None
    page.evaluate("document.body.setAttribute('style', 'display: none')")
    assert page.locator("body").is_visible()
    refused = "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)"
    assert page.evaluate(refused) == "TypeError"
    page.close()


def test_every_control_and_picture_has_a_name(visit, compared):
    page = visit(compared)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, summary, a, svg[role=img], article')]
             .filter((each) => !(each.labels?.length || each.getAttribute('aria-label') || each.textContent.trim()
                || document.getElementById(each.getAttribute('aria-labelledby')?.split(' ')[0])))
             .map((each) => each.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    page.locator("#epoch").fill("0")
    silent = page.evaluate("[...document.images].filter((each) => !each.closest('.d') && !each.alt.trim()).length")
    assert silent == 0
    assert page.locator("main, header, nav").count() == 3


def test_of_several_models_one_is_chosen(visit, tmp_path):
    probes = set_of(12)
    three = {
        "leaning": runs(probes)["leaning"],
        "middling": history_of(audit(probes, 5, wrong=[0, 1, 2], place=24)),
        "third": history_of(audit(probes, 5, wrong=[3], place=48)),
    }
    page = visit(page_of(tmp_path, three, probes), anchor="#probes")
    # Beside the verdict: the model that raises the alarm, and the best that raises none.
    assert page.locator(".evidence .chip").all_inner_texts()[:2] == ["A", "C"]
    assert page.locator(".numbers thead").inner_text().split()[-3:] == ["A", "B", "C"]
    before = heat(page, 3, "b")
    page.locator("#other").select_option("2")
    after = heat(page, 3, "b")
    assert after[0] != before[0]
    assert "Heat of third, epoch 5" in after[1]
    assert "wrong" in card(page, 3).locator(".b figcaption").inner_text()
    page.locator("#answer").select_option("1 wrong")
    assert shown(page) == ["probe_003"]
    assert page.locator("#answer option:checked").inner_text() == "C wrong"
    assert page.locator("#of option:checked").inner_text() == "C"


def test_one_model_by_name_is_a_run(tmp_path):
    probes = set_of(12)
    html = page_of(tmp_path, {"the net": runs(probes)["sound"]}, probes).read_text(encoding="utf-8")
    assert "Audit of a run" in html
    assert "<h1>the net</h1>" in html
    with pytest.raises(ConfigurationError, match=r"Expected `given` to be .*"):
        page_of(tmp_path, {}, probes)
