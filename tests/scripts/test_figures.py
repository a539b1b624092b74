"""The scripts behind the README's figures run, and the documents say what they found."""

import json

import bench_cam
import pytest
import update_readme


@pytest.mark.parametrize("page", update_readme.PAGES)
def test_the_tables_of_each_page_are_those_of_the_kept_results(page):
    text = (update_readme.ROOT / page).read_text(encoding="utf-8")
    assert "<!-- end of " in text
    assert update_readme.filled(text) == text


def test_the_readme_says_that_training_is_not_disturbed():
    readme = (update_readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert "| resnet50 |" in readme
    assert "| **AuditCallback** | identical | identical | identical | identical |" in readme


@pytest.mark.slow
def test_bench_cam_writes_its_ratios(tmp_path):
    path = tmp_path / "new" / "cam.json"
    options = ["--repeats", "1", "--models", "mobilenet_v2", "--no-peers", "--no-memory", "--json", str(path)]
    figures = bench_cam.main(options)["models"]["mobilenet_v2"]
    written = json.loads(path.read_text())
    assert written["models"]["mobilenet_v2"] == figures
    assert 0 < figures["ratio_to_forward"] <= figures["ratio_16_questions"] * 2
    assert written["versions"].keys() >= {"torch", "captum", "python"}
    assert written["date"][:2] == "20"
