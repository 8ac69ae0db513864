import pytest

from microumup.lab import pictures


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_picture_is_the_same_bytes_whenever_it_is_drawn(tmp_path, suffix, monkeypatch):
    pytest.importorskip("matplotlib")
    files = []
    for date in ("0", "86400"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
        figure = pictures.new_figure(2, 2)
        figure.subplots().plot([0, 1], label="a")
        path = tmp_path / f"{date}{suffix}"
        pictures.save(figure, path)
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert b"Matplotlib version" not in files[0]  # which another version would write otherwise
