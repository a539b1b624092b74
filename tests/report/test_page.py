"""The file itself: what it holds, what it refuses, how large it is."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tests.gallery.records import audit_of, history_of, probes_of
from tests.report.pages import audit, data_of, page_of, runs, set_of
from xai_callbacks import compare as comparisons
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import MapSet
from xai_callbacks.report import write_html

TEMPLATES = Path(write_html.__code__.co_filename).parent / "templates"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Headings, ids and links in order."""

    def __init__(self, html):
        super().__init__()
        self.headings, self.ids, self.links, self.styled = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"][1:]] if given.get("href", "").startswith("#") else []
        self.styled += [name for name in given if name == "style" or name.startswith("on")]


def test_headings_are_in_order_and_links_lead_somewhere(html):
    outline = Outline(html)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    steps = zip(outline.headings, outline.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(outline.links) <= set(outline.ids)
    assert len(outline.links) > 10
    assert outline.styled == []


def test_the_policy_names_the_one_style_and_the_one_script(html):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?://(?!www\.w3\.org)", html)


def test_data_cannot_end_its_block(tmp_path):
    probes, name = set_of(12), "</script><!-- & \u2028"
    text = page_of(tmp_path, {name: runs(probes)["sound"]}, probes).read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    assert not set("<>&\u2028") & set(block)
    assert data_of(text)["names"] == [name]


def luminance(color):
    values = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Contrast ratio of WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_palette_has_contrast(theme):
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colors = {name: each[theme] for name, *each in pairs}
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground in ("paper", "panel"):
        for name in ("ink", "muted", "link", "alarm", "watch", "right", *(f"s{place}" for place in range(8))):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
    for name in ("alarm", "watch", "right"):
        assert contrast(colors[name], colors[f"{name}-bg"]) >= 4.5
    assert contrast(colors["focus"], colors["panel"]) >= 3


def test_templates_are_in_the_package():
    assert {each.name for each in TEMPLATES.iterdir()} == {"page.html", "parts.html", "script.js", "style.css"}
    from xai_callbacks.report import page

    assert Path(page.__file__).parent == TEMPLATES.parent


def test_a_folder_is_made_and_an_older_page_replaced_as_a_whole(tmp_path, monkeypatch):
    probes, path = set_of(12), tmp_path / "new" / "page.html"
    given = runs(probes)["sound"]
    assert write_html(given, str(path), probes) == path
    whole = path.read_text(encoding="utf-8")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(AuditError, match="No space left"):
        write_html(given, path, probes, title="another")
    assert path.read_text(encoding="utf-8") == whole
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"given": History()}, AuditError, "with an audit, but there is none. Audit the model first"),
        ({"given": {"a": History(), "b": History()}}, ConfigurationError, "'a'"),
        ({"given": [1]}, ConfigurationError, "Expected `given` to be a Comparison, a History, or histories by name"),
        ({"probes": probes_of(12)}, AuditError, "of the probes .* ProbeSet.load"),
        ({"probes": "probes"}, ConfigurationError, "Expected `probes` to be a ProbeSet"),
        ({"path": 3}, ConfigurationError, "Expected `path` to be the path of a file"),
        ({"max_probes": 0}, ConfigurationError, "Expected `max_probes` to be an integer of 1 or more"),
        ({"title": 3}, ConfigurationError, "Expected `title` to be text"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_shown_is_refused(tmp_path, change, error, words):
    probes = set_of(12)
    given = {"given": runs(probes)["sound"], "path": tmp_path / "page.html", "probes": probes} | change
    with pytest.raises(error, match=words) as raised:
        write_html(given.pop("given"), given.pop("path"), given.pop("probes"), **given)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_path_is_refused(tmp_path):
    probes = set_of(12)
    with pytest.raises(ConfigurationError, match=r"is a folder\. Name a file"):
        write_html(runs(probes)["sound"], tmp_path, probes)


def test_thinned_audits_are_refused(tmp_path):
    probes = set_of(12)
    thinned = History.from_state(runs(probes)["sound"].state())
    with pytest.raises(AuditError, match=r"those of step 200 were dropped\. Read the history from its folder"):
        page_of(tmp_path, thinned, probes)


def test_models_that_cannot_be_compared_are_refused(tmp_path):
    probes = set_of(12)
    other = replace(audit(probes, 1), explainers={"gradcam": "HiResCAM()"})
    with pytest.raises(ConfigurationError, match="explainers"):
        page_of(tmp_path, runs(probes) | {"third": history_of(other)}, probes)


def test_a_comparison_says_what_its_models_do(tmp_path):
    probes = set_of()
    models = runs(probes)
    given = comparisons.compare(models)
    assert data_of(page_of(tmp_path, given, probes).read_text(encoding="utf-8")) == data_of(
        page_of(tmp_path, models, probes).read_text(encoding="utf-8")
    )


def test_where_heat_moved_over_all_probes_is_framed(tmp_path):
    probes = set_of()
    models = runs(probes)
    text = page_of(tmp_path, models, probes).read_text(encoding="utf-8")
    given = comparisons.compare(models)
    height, width = probes.pixels.shape[1:3]
    frames = re.findall(r'<rect class="over" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', text)
    keys = given.differences["sound"].agreements
    assert len(frames) == len(keys) == 3
    for key, frame in zip(keys, frames, strict=True):
        (region,) = given.difference_regions("sound", key, (height, width))
        x, y, across, down = map(int, frame)
        assert (y, x, y + down, x + across) == region.box
        assert x <= width / 2 < x + across
        assert y <= height / 2 < y + down
        share = f"{100 * region.area / (height * width):.2g}\u00a0%"
        words = f"{int(keys[key].same.sum())} probes: most at the middle centre, on {share} of the image"
        assert f"Heat of B less that of A, {key}: {words}" in text
    twins = {"a": models["sound"], "b": models["sound"]}
    assert "<rect" not in page_of(tmp_path, twins, probes).read_text(encoding="utf-8")


def regression():
    values = torch.linspace(0, 1, 8)
    probes = probes_of(8, labels=None, class_names=None, targets=values)
    return probes, audit_of(probes, values[:, None] + 0.1)


def multi_label():
    labels = (torch.arange(24).reshape(8, 3) % 2).long()
    probes = probes_of(8, labels=labels)
    return probes, audit_of(probes, torch.linspace(-2, 2, 24).reshape(8, 3))


def unlabelled():
    probes = probes_of(8, labels=None)
    return probes, audit_of(probes, metrics={})


def without_maps():
    probes = probes_of(8)
    return probes, audit_of(probes, questions=(), titles=(), facts=None, foils=None)


def of_the_image():
    probes = probes_of(8)
    about = MapSet(heatmaps=torch.rand(1, 8, 16, 16), explainer="NoveltyMap()", about="image", units="relative")
    record = audit_of(probes)
    return probes, replace(record, maps={**record.maps, "novelty_map": about})


def not_finite():
    probes = probes_of(8)
    record = audit_of(probes)
    record.maps["gradcam"].heatmaps[0, 3] = torch.nan
    record.maps["gradcam"].heatmaps[1, 4, 2] = torch.inf
    return probes, record


def doubted():
    probes = probes_of(8)
    return probes, audit_of(probes, trust={"gradcam/why": "fails the deletion test"})


def one_probe():
    probes = probes_of(1)
    return probes, audit_of(probes)


def oblong():
    probes = probes_of(8, size=(24, 60))
    return probes, audit_of(probes)


def without_answers():
    probes = probes_of(8)
    blank = dict.fromkeys(("outputs", "predictions", "confidences", "correct", "facts", "foils"))
    return probes, audit_of(probes, questions=(), titles=(), metrics={}, **blank)


CASES = (
    regression, multi_label, unlabelled, without_maps, of_the_image, not_finite, doubted, one_probe, oblong,
    without_answers,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_audits_of_all_kinds_are_shown(visit, tmp_path, case):
    probes, record = case()
    page = visit(page_of(tmp_path, history_of(record), probes), anchor="#probes")
    assert page.locator(".card:visible").count() == len(probes)
    for place in range(page.locator("#asked option").count()):
        page.locator("#asked").select_option(str(place))
    if case is doubted:
        assert page.locator(".card .doubt").count() == 0
        page.locator("#asked").select_option("0")
        assert page.locator(".card .doubt").count() == 8
        assert "grey: fails the deletion test" in page.locator("#probe-0 .a figcaption").inner_text()
    two = {"a": history_of(record), "b": history_of(replace(record, epoch=9))}
    both = visit(page_of(tmp_path / "two", two, probes), anchor="#probes")
    both.keyboard.press("Tab")
    assert both.locator(".card:visible .b").count() == len(probes)


@pytest.mark.parametrize(
    ("empty", "words"),
    [(0, "both. Those"), (5, "both; heat of 7 of these can be compared. Those"),
     (12, "both; heat of none of these can be compared.</p>")],
)  # fmt: skip
def test_of_probes_with_the_same_answer_it_is_said_whose_heat_can_be_compared(tmp_path, empty, words):
    probes = set_of(12)
    record = audit(probes, 1)
    record.maps["gradcam"].heatmaps[:, :empty] = 0
    given = {"a": history_of(record), "b": history_of(replace(record, weights="b"))}
    text = page_of(tmp_path, given, probes).read_text(encoding="utf-8")
    assert f"12 of the probes have the same answer from {words}" in text


@pytest.mark.parametrize(("run", "title"), [("0123456789abcdef", "Run 01234567"), ("", "A run without a name")])
def test_a_run_is_titled_by_its_identity(tmp_path, run, title):
    probes = set_of(12)
    text = page_of(tmp_path, history_of(audit(probes, 1, run=run)), probes).read_text(encoding="utf-8")
    assert f"<title>{title}</title>" in text


def test_without_heat_in_both_there_is_no_table_of_its_agreement(tmp_path):
    probes = set_of(12)
    given = {"a": history_of(audit(probes, 1)), "b": history_of(replace(audit(probes, 1), maps={}))}
    text = page_of(tmp_path, given, probes).read_text(encoding="utf-8")
    assert "heat of none of these can be compared" in text
    assert "Agreement of heat" not in text


def test_what_audits_say_of_themselves_is_said_once(tmp_path):
    probes, both, own = set_of(12), "Said of both.", "There are no heatmaps."
    a, b = audit(probes, 1, notes=(both,)), audit(probes, 1, notes=(both,), failed=(own,))
    two = page_of(tmp_path, {"a": history_of(a), "b": history_of(b)}, probes).read_text(encoding="utf-8")
    assert (two.count(both), two.count(own), two.count(f"<li>b: {own}</li>")) == (1, 1, 1)
    one = page_of(tmp_path, history_of(b), probes).read_text(encoding="utf-8")
    assert (one.count(f"<li>{both}</li>"), one.count(f"<li>{own}</li>")) == (1, 1)


def test_few_of_many_probes_have_a_card(tmp_path):
    probes = set_of()
    text = page_of(tmp_path, runs(probes), probes, max_probes=5).read_text(encoding="utf-8")
    names = re.findall(r'id="name-\d+">([^<]*)<', text)
    ranking = comparisons.compare(runs(probes)).ranking()
    assert names == sorted(each.name for each in ranking[:5])
    assert "cards show 5 of 36 probes" in text
    text = page_of(tmp_path, runs(probes)["sound"], probes, max_probes=3).read_text(encoding="utf-8")
    assert re.findall(r'id="name-\d+">([^<]*)<', text) == ["probe_000", "probe_018", "probe_035"]


def photo_like(count, side, generator):
    """Pictures whose spectrum falls with frequency, as that of photos does, with grain."""
    frequency = torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()
    noise = torch.randn(count, 3, side, side, generator=generator)
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / (frequency.sqrt() + 0.5 / side), s=(side, side))
    scaled = (smooth - smooth.mean((2, 3), keepdim=True)) / smooth.std((2, 3), keepdim=True)
    grain = 3 * torch.randn(count, 3, side, side, generator=generator)
    return (128 + 50 * scaled + grain).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.slow
def test_a_large_page_is_small_enough(visit, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(64, 3, 224, 224)
    probes = ProbeSet.from_tensors(images, torch.arange(64) % 3, pixels=photo_like(64, 224, generator),
                                   class_names=("cat", "dog", "owl"))  # fmt: skip
    history = History(keep=20)
    for number in range(20):
        record = audit_of(probes, number=number, grid=(14, 14))
        record.maps["gradcam"].heatmaps.copy_(torch.randn(3, 64, 14, 14, generator=generator) * 0.05)
        history.append(record)
    path = page_of(tmp_path, history, probes)
    data = data_of(path.read_text(encoding="utf-8"))
    assert len(data["stops"]) == 20
    assert len(data["images"]) == 64 * 20 * 3 + 1
    assert path.stat().st_size < 15_000_000
    page = visit(path, anchor="#probes")
    page.locator("#epoch").fill("3")
    assert "epoch 3" in page.locator("#probe-0 .a img").get_attribute("alt")
