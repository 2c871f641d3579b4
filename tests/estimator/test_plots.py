"""The page of `size --html` and `compare --html`: offline, whole, safe, and true to the figures."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from estimator.charts import Bar, Point, Roof, layer_columns, roofline, stacked_bars
from estimator.cli import main
from estimator.devices import load_devices
from estimator.errors import InputError
from estimator.plots import render_page, write_page
from estimator.readers.source import read_bundled
from estimator.sized_source import size_source
from estimator.sizing import estimate

_ALONE = {"meta", "br", "line"}


class Page(HTMLParser):
    """Tags that are opened and not closed, every attribute, and the text of titles."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in _ALONE:
            assert self.open.pop() == tag


def sized(name, device="l4", **others):
    """A bundled model as the command line sizes it."""
    asked = {"batch_size": 2, "prompt_length": 256, "generated_length": 32, "device": device}
    return size_source(read_bundled(name), **(asked | others))


@pytest.fixture(scope="module")
def pages():
    """Pages of one model, of several, of an encoder on a CPU, and without a device."""
    return [
        render_page([sized("llama-3.1-8b")]),
        render_page([sized("gpt2"), sized("qwen3-0.6b"), sized("bert-base-uncased")], {"nope": "is no model"}),
        render_page([sized("bert-base-uncased", "raspberry-pi-5")]),
        render_page([sized("gpt2", None)]),
        render_page([sized("gpt2", "apple-m4")]),
    ]


def test_pages_are_well_formed_and_need_no_network(pages):
    """Every tag is closed; no script, no address, no file beside it; the policy forbids them too."""
    for text in pages:
        page = Page(text)
        assert page.open == []
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        assert not [value for name, value in page.attributes if name in ("src", "href")]
        assert "default-src 'none'" in text
        assert "url(" not in text
        assert "<!--" not in text
        assert len(text) < 200_000


def test_every_mark_of_a_page_has_a_place(pages):
    """No number of any drawing is infinite or not a number, and all lie within the picture."""
    for text in pages:
        assert not re.search(r"\b(nan|inf)\b", text)
        for name, value in Page(text).attributes:
            if name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height") and "." in value:
                assert -1 <= float(value) <= 3000, (name, value)


def test_a_page_shows_the_figures(pages):
    """Parameters, memory parts, roofs by type, both phases and the warnings."""
    text = pages[0]
    for shown in ("8,030,261,248", "KV cache", "memory bandwidth 300 GB/s", "fp16, bf16", ">prefill<", ">decode<"):
        assert shown in text
    assert "32 decoder layers" in text
    assert "nope: is no model" in pages[1]
    assert "12 encoder layers" in pages[2]
    assert "With --device NAME" in pages[3]
    assert "no published arithmetic rate" in pages[4]


def test_hostile_names_stay_text():
    """A model may be called anything, also what a template or a page would act on."""
    name = '<script>alert(1)</script><!--body-->"&'
    text = render_page([replace(sized("gpt2"), name=name)])
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert Page(text).open == []


@pytest.mark.parametrize("device", ["t4", "h100", "raspberry-pi-3b", "tpu-v5e", "gaudi-3"])
def test_points_lie_under_the_roof_of_their_device(device):
    """On every kind of device the expected rate is below the peak and below bandwidth times intensity."""
    result = sized("gpt2", device, weight_dtype="fp32" if device == "raspberry-pi-3b" else "bf16")
    row = load_devices()[device]
    for phase in (result.latency.prefill_s, result.latency.decode_s_per_token):
        rate = phase.flops / phase.time_s.value
        assert rate <= max(row.peak_flops_per_s.values())
        assert rate <= 1.0001 * phase.intensity * row.memory_bandwidth_bytes_per_s
    assert Page(render_page([result])).open == []


def test_bars_are_as_long_as_their_parts_are_large():
    """Widths are to each other as the sizes."""
    parts = {"a": 300, "b": 100}
    text = stacked_bars([Bar(label="m", remark="", parts=parts)], {"a": 1, "b": 2}, "B", {}, "t")
    widths = [float(width) for width in re.findall(r'<rect [^>]*? width="([0-9.]+)"', text)]
    assert widths[0] / widths[1] == pytest.approx(3, rel=1e-3)
    assert "300" in text


def test_columns_are_as_tall_as_their_layers_are_large():
    """A layer that owns nothing has no column."""
    text = layer_columns([{"a": 50}, {}, {"a": 100}], {"a": 1}, "t")
    heights = [float(height) for height in re.findall(r'<rect [^>]*? height="([0-9.]+)"', text)]
    assert heights[1] / heights[0] == pytest.approx(2, rel=1e-3)
    assert len(heights) == 2


def test_the_roofline_is_logarithmic():
    """Points a factor of ten apart in both directions lie one decade apart in both."""
    points = [
        Point(
            label=str(n), shape="circle", colour=1, intensity=10.0**n, rate=1e9 * 10.0**n, low=1e9, high=1e12, note=""
        )
        for n in (0, 1, 2)
    ]
    text = roofline(Roof(peaks={"fp32": 1e12}, bandwidth=1e10, sustained=(5e11, 5e9)), points, "t")
    places = sorted((float(x), float(y)) for x, y in re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)"', text))
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.2)


def test_a_model_of_weights_alone_has_a_page(only_weights_source):
    """Only what is known is shown."""
    text = render_page([estimate(only_weights_source)])
    assert Page(text).open == []
    assert "Time to first token" not in text
    assert "KV cache" not in text


@pytest.fixture
def only_weights_source():
    """A network of which nothing but weights is known."""
    from estimator.network import Block, Network, Stack, Weight

    weights = (Weight(name="w", shape=(64, 8), role="other"),)
    stack = Stack(name="model", hidden_size=1, layers=(), before=(Block(name="", part="other", weights=weights),))
    return Network(architecture="encoder", stacks=(stack,), model_type="gguf", has_only_weights=True)


def test_the_page_is_written_whole_or_refused(tmp_path):
    """A folder is no file, and a file is no folder; both are said in one line."""
    result = sized("gpt2")
    path = write_page([result], tmp_path / "new" / "size.html")
    assert path.read_text(encoding="utf-8") == render_page([result])
    with pytest.raises(InputError, match="is a folder"):
        write_page([result], tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_page([result], path / "size.html")


def test_a_page_never_replaces_a_link_a_pipe_or_a_device(tmp_path):
    """`--html /dev/full` was once a device, and then a page: what is no file is written into."""
    result = sized("gpt2")
    (tmp_path / "target.html").write_text("old", encoding="utf-8")
    link = tmp_path / "link.html"
    link.symlink_to("target.html")
    write_page([result], link)
    assert link.is_symlink()
    assert (tmp_path / "target.html").read_text(encoding="utf-8") == render_page([result])
    read_end, write_end = os.pipe()
    try:  # a pipe holds 64 KiB, more than the page has
        write_page([result], f"/dev/fd/{write_end}")
        assert b"<!doctype html>" in os.read(read_end, 1 << 20).lower()
    finally:
        os.close(read_end)
        os.close(write_end)


def test_both_commands_write_the_page(tmp_path, capsys, monkeypatch):
    """`size --html` and `compare --html`, beside their usual answer."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))
    for name, arguments in {"one": ["size", "gpt2"], "two": ["compare", "gpt2", "mistral-7b"]}.items():
        path = tmp_path / f"{name}.html"
        assert main([*arguments, "--device", "l4", "--html", str(path)]) == 0
        captured = capsys.readouterr()
        assert "124.4 M" in captured.out
        assert f"wrote {path}" in captured.err
        assert Page(path.read_text(encoding="utf-8")).open == []
