import shutil

import pytest
from PIL import Image


def test_the_picture_is_the_first_screen(tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("there is no chromium")
    pytest.importorskip("playwright", reason="playwright opens the browser")
    import report_picture

    (tmp_path / "page.html").write_text('<body style="margin:0;background:#00f"><p style="margin-top:2000px">far below')
    assert report_picture.main([str(tmp_path / "page.html"), str(tmp_path / "new" / "page.png")]) == 0
    picture = Image.open(tmp_path / "new" / "page.png").convert("RGB")
    assert picture.size == report_picture.SHOWN
    assert picture.getcolors() == [(1080 * 660, (0, 0, 255))]
