"""The scripts behind the README's figures run, and the README says what they found."""

import json

import bench_cam
import pytest
import render_real_nets
import update_readme
from PIL import Image


def test_the_tables_of_the_readme_are_those_of_the_kept_results():
    readme = (update_readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert "| resnet50 |" in readme
    assert "| **AuditCallback** | identical | identical | identical | identical |" in readme
    assert update_readme.filled(readme) == readme
    shortcuts = (update_readme.ROOT / "docs" / "shortcuts.md").read_text(encoding="utf-8")
    assert update_readme.filled(shortcuts) == shortcuts
    novelty = (update_readme.ROOT / "docs" / "novelty.md").read_text(encoding="utf-8")
    for score in ("gradient/fisher", "purview_distance", "confounding_labels"):
        assert f"| `{score}` |" in novelty
    assert update_readme.filled(novelty) == novelty


def test_bench_cam_writes_its_ratios(tmp_path):
    path = tmp_path / "new" / "cam.json"
    options = ["--repeats", "1", "--models", "mobilenet_v2", "--no-peers", "--no-memory", "--json", str(path)]
    figures = bench_cam.main(options)["models"]["mobilenet_v2"]
    written = json.loads(path.read_text())
    assert written["models"]["mobilenet_v2"] == figures
    assert 0 < figures["ratio_to_forward"] <= figures["ratio_16_questions"] * 2
    assert written["versions"].keys() >= {"torch", "captum", "python"}
    assert written["date"][:2] == "20"


@pytest.mark.data
def test_real_nets_answer_as_their_weights_should(shared_data, tmp_path, capsys):
    paths = render_real_nets.main(["--data", str(shared_data), "--out", str(tmp_path), "--models", "mobilenet_v2"])
    said = capsys.readouterr().out
    assert "bull mastiff (0.66)" in said
    assert "spoonbill (0.98)" in said
    assert "flamingo (0.63)" in said
    assert [path.name for path in paths] == [
        "bull_mastiff_boxer_cat_mobilenet_v2.png",
        "spoonbill_mobilenet_v2.png",
        "flamingo_mobilenet_v2.png",
    ]
    for path in paths:
        with Image.open(path) as panel:
            assert panel.format == "PNG"
            assert min(panel.size) > 400


def test_real_nets_say_what_folder_they_need(tmp_path, capsys):
    with pytest.raises(SystemExit):
        render_real_nets.main(["--data", str(tmp_path)])
    assert "expected a folder with weights" in capsys.readouterr().err
