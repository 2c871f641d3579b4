"""The report: a page that opens offline, shows what is stored, and stays harmless whatever a study is called."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from estimator.errors import StorageFullError
from estimator.figures import Figure
from nas.errors import UsageError
from nas.objectives import Constraint, Objective
from nas.pareto import front_of
from nas.report import render_report, write_report
from nas.space import SearchSpace
from nas.spec import QualitySettings, StudySpec
from nas.store import Store

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)></script><!--data--><script>alert(2)</script>&amp;\"'"
# (bits per byte, decode seconds, parameters): trials 0, 1 and 3 are on the front, trial 2 is beaten by trial 1.
FIGURES = ((3.0, 1e-4, 50_000), (2.5, 2e-4, 90_000), (2.6, 3e-4, 95_000), (2.2, 8e-4, 400_000))


class Page(HTMLParser):
    """Every tag with its attributes, and the text inside each kind of tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "link", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    @property
    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]

    @property
    def chart_data(self) -> dict:
        return json.loads(self.texts["script"][0])

    def rows(self, marker: str) -> int:
        return sum(tag == "tr" and marker in (attributes.get("id") or "") for tag, attributes in self.tags)


def measured(value: float) -> Figure:
    return Figure(value=value, low=value * 0.98, high=value * 1.03, origin="measured")


@pytest.fixture
def store():
    store = Store.in_memory(now=lambda: NOW)
    yield store
    store.close()


def fill(store: Store, spec: StudySpec, name: str, figures=FIGURES):
    """A study with these complete trials, then a failed and a pruned one."""
    study = store.create_study(spec, name)
    params = list(spec.space.sample(len(figures) + 2, seed=1))
    for choice, (bits, latency_s, count) in zip(params, figures, strict=False):
        trial = store.start_trial(study.id, params=choice, config=spec.space.to_config(choice))
        found = {"bits_per_byte": measured(bits), "decode_latency_s": measured(latency_s)}
        store.finish_trial(
            study.id, trial.number, "complete", figures=found | {"params": Figure(value=count, origin="counted")}
        )
    config = spec.space.to_config(params[-1])
    trial = store.start_trial(study.id, params=params[-1], config=config)
    store.finish_trial(study.id, trial.number, "fail", error_type="out_of_memory", error_text="memory <ran> out")
    store.start_trial(
        study.id, params=params[-1], config=config, state="pruned", error_text="parameters 9M are over the limit 5M"
    )
    return study


@pytest.fixture(scope="module")
def spec():
    return StudySpec(
        space=SearchSpace.preset("decoder-nano"), num_trials=6, constraints=(Constraint("decode_latency_s", 9e-4),)
    )


@pytest.fixture
def study(store, spec):
    return fill(store, spec, "first")


def render(store, study) -> Page:
    return Page(render_report(study, store.trials(study.id), store="sqlite:///demo.db"))


def test_report_loads_nothing_from_elsewhere(store, study):
    """No tag names a file or an address, and the policy forbids every request."""
    page = render(store, study)
    links = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert links
    assert all(re.fullmatch(r"#trial-\d+", link) for link in links)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_report_policy_allows_exactly_its_own_scripts(store, study):
    """The hashes in the policy are those of the two scripts that are there: Plotly and ours."""
    html = render_report(study, store.trials(study.id), store="sqlite://")
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    allowed = re.search(r"script-src ([^;]*);", html)
    assert allowed is not None
    assert set(allowed[1].split()) == hashes
    assert len(hashes) == 2


def test_report_shows_a_hostile_name_as_text(store, spec):
    """Markup in a study's name is text: no tag of it comes to life, and every part of it can be read."""
    page = render(store, fill(store, spec, HOSTILE))
    assert "img" not in page.names
    assert page.names.count("script") == 3
    assert "".join(page.texts["h1"]) == HOSTILE
    assert page.texts["title"][0].startswith(HOSTILE)


def test_report_charts_hold_the_stored_figures(store, study):
    """Each complete trial is a point with its figures; the front is the store's front."""
    data = render(store, study).chart_data
    front = front_of(study.spec, store.trials(study.id))
    assert front.trials == (3, 1, 0)
    assert {point["number"]: point["front"] for point in data["trials"]} == {0: True, 1: True, 2: False, 3: True}
    for point, (bits, latency_s, count) in zip(data["trials"], FIGURES, strict=True):
        figures = point["figures"]
        assert figures["bits_per_byte"]["value"] == bits
        assert figures["decode_latency_s"]["low"] == latency_s * 0.98
        assert (figures["params"]["value"], figures["params"]["origin"]) == (count, "counted")
    axes = {axis["name"]: axis for axis in data["axes"]}
    assert set(axes) == {"params", "bits_per_byte", "decode_latency_s", "trial"}
    assert axes["decode_latency_s"]["limits"] == [9e-4]
    assert (axes["decode_latency_s"]["scale"], axes["decode_latency_s"]["title"]) == (1e-6, "decode latency (µs)")


def test_report_hypervolume_rises_to_that_of_the_front(store, study):
    """Each step equals the front of the trials up to it, measured from the final reference."""
    trials = store.trials(study.id)
    front = front_of(study.spec, trials)
    steps = render(store, study).chart_data["hypervolume"]
    expected = [[n, front_of(study.spec, trials[: n + 1], front.reference).hypervolume] for n in range(4)]
    assert steps == expected
    assert steps[-1][1] == front.hypervolume


def test_report_lists_every_trial_with_its_reason(store, study):
    """Failed and pruned trials are there, with why."""
    page = render(store, study)
    assert page.rows("trial-") == 6
    reasons = page.texts["small"]
    assert "out_of_memory: memory <ran> out" in reasons
    assert "parameters 9M are over the limit 5M" in reasons
    assert "4 complete, 1 failed, 1 pruned; front of 3 points" in "".join(page.texts["p"])


def test_report_says_that_a_trial_repeats_another(store, spec):
    """A duplicate is a row that names its original, no point of the chart."""
    study = fill(store, spec, "repeats")
    first = store.trial(study.id, 0)
    store.start_trial(study.id, params=first.params, config=first.config, state="complete", duplicate_of=0)
    page = render(store, study)
    assert len(page.chart_data["trials"]) == 4
    assert "same architecture as trial 0; nothing was paid" in page.texts["small"]
    assert "1 repeated" in "".join(page.texts["p"])


def test_report_marks_a_noisy_measurement(store, study):
    """The warnings of a measurement stand beside its trial."""
    trials = list(store.trials(study.id))
    trials[2] = replace(trials[2], measurement={"device": {"memory_bytes": 8 * 10**9}, "warnings": ["noisy: wide"]})
    page = Page(render_report(study, trials, store="sqlite://"))
    assert "noisy: wide" in page.texts["small"]
    assert "memory 8.00 GB" in page.texts["dd"]


def test_report_without_a_complete_trial_says_so(store, spec):
    """No chart, no Plotly, no front; the reasons and the next commands are there."""
    page = render(store, fill(store, spec, "nothing", figures=()))
    assert page.names.count("script") == 1
    assert page.chart_data == {"axes": page.chart_data["axes"], "trials": [], "hypervolume": []}
    assert "No trial is complete yet." in page.texts["p"]
    assert page.rows("trial-") == 2
    assert any(command.startswith("nas show nothing --store") for command in page.texts["pre"])


def test_report_of_an_empty_study_renders(store, spec):
    """Nothing proposed yet is a page, too."""
    page = render(store, store.create_study(spec, "empty"))
    assert "Nothing was proposed yet." in page.texts["p"]


def test_report_without_a_feasible_trial_has_points_and_no_front(store, spec):
    """All trials break the limit: the scatter shows them, the front and the hypervolume are empty."""
    study = fill(store, replace(spec, constraints=(Constraint("decode_latency_s", 1e-6),)), "tight")
    page = render(store, study)
    assert [point["front"] for point in page.chart_data["trials"]] == [False] * 4
    assert page.chart_data["hypervolume"] == []
    assert "No trial keeps every limit yet." in page.texts["p"]
    assert any("trial 0 comes nearest: decode latency 100 µs where the limit is 1.00 µs" in p for p in page.texts["p"])
    assert [command.split(" --")[0] for command in page.texts["pre"]] == ["nas show tight", "nas resume tight"]


def test_report_of_one_trial_and_one_objective_runs_over_trials(store, spec):
    """With a single objective the other axis is the trial's number."""
    study = fill(store, replace(spec, objectives=(Objective("bits_per_byte"),)), "single", figures=FIGURES[:1])
    page = render(store, study)
    chosen = [attributes["value"] for tag, attributes in page.tags if tag == "option" and "selected" in attributes]
    assert chosen == ["trial", "bits_per_byte"]
    assert len(page.chart_data["hypervolume"]) == 1


def test_write_report_hides_the_stores_password(tmp_path, store, study):
    """The next commands name the store without its password."""
    place = SimpleNamespace(
        url="postgresql+psycopg://me:secret@host/db", trials=store.trials, find_study=store.find_study
    )
    html = write_report(place, study, tmp_path / "report.html").read_text()
    assert "secret" not in html
    assert "--store 'postgresql+psycopg://me:***@host/db'" in "".join(Page(html).texts["pre"])


def test_write_report_shows_the_study_as_it_stands(tmp_path, store, study):
    """A record read before the search does not make the report say that it has not begun."""
    store.set_study_state(study.id, "finished")
    page = Page(write_report(store, study, tmp_path / "report.html").read_text())
    assert any(", finished, created" in fact for fact in page.texts["dd"])


def test_write_report_leaves_one_whole_file(tmp_path, store, study):
    """It replaces an older report; when it cannot, the older one stays and nothing else does."""
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(store, study, path) == path
    assert path.read_text().endswith("</html>\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(UsageError, match=r"report\.html/inside-a-file\.html cannot be written: "):
        write_report(store, study, path / "inside-a-file.html")


def test_write_report_names_its_own_file_when_it_cannot_write(tmp_path, store, study, monkeypatch):
    """A folder is no file; a full disk names the report and no temporary file."""
    with pytest.raises(UsageError, match=f"{tmp_path} is not a file; name the file"):
        write_report(store, study, tmp_path)

    def refuse(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nas.report.write_text_atomically", refuse)
    with pytest.raises(StorageFullError, match=r"/report\.html: no space left to write the report"):
        write_report(store, study, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("evaluator", "words"),
    [("none", "not scored"), ("mine:score", "scored by mine:score"), ("train", "evaluator train")],
)
def test_report_says_how_quality_was_found(store, spec, evaluator, words):
    """Whatever the evaluator stored with a trial, the report names it, and whether the weights were trained."""
    objectives = (Objective("decode_latency_s"), Objective("params"))
    settings = QualitySettings(evaluator=evaluator, seed=7)
    study = fill(store, replace(spec, objectives=objectives, quality=settings), "by")
    quality = {"figures": {}} | ({"data_fingerprint": "0a1b2c"} if evaluator == "train" else {})
    trials = [replace(trial, quality=quality) for trial in store.trials(study.id)]
    facts = Page(render_report(study, trials, store="sqlite://")).texts["dd"]
    assert any(words in fact for fact in facts)
    assert ("fingerprint 0a1b2c" in facts) == (evaluator == "train")
    assert ("random, from seed 7; nothing was trained" in facts) == (evaluator != "train")


def test_report_calls_the_score_of_encoders_masked(store):
    """Bits per byte behind a mask are no bits per byte: headings, axes and cards say so."""
    spec = StudySpec(space=SearchSpace.preset("encoder-small"), objectives=(Objective("bits_per_byte"),))
    study = fill(store, spec, "encoders")
    page = render(store, study)
    assert "masked bits per byte" in page.texts["button"]
    assert "best masked bits per byte" in page.texts["div"]
    labels = {axis["name"]: axis["label"] for axis in page.chart_data["axes"]}
    assert labels["bits_per_byte"] == "masked bits per byte"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_report_draws_its_charts_in_a_browser(tmp_path, store, study):
    """A real browser without network runs the page under its policy: every point of both charts is drawn."""
    path = write_report(store, study, tmp_path / "report.html")
    dom, console = browse(tmp_path, path.as_uri())
    assert len(re.findall(r'class="point[ "]', dom)) == 2 * 4
    assert "CONSOLE" not in console


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 420])
def test_report_charts_keep_to_their_cards_on_a_phone(tmp_path, store, study, width):
    """Made as narrow as a phone, the page has charts as wide as their places when it is next painted."""
    write_report(store, study, tmp_path / "report.html")
    (tmp_path / "phone.html").write_text(PHONE.replace("WIDTH", str(width)))
    dom, _ = browse(tmp_path, (tmp_path / "phone.html").as_uri(), "--allow-file-access-from-files")
    (widths,) = re.findall(r'data-widths="([^"]*)"', dom)
    pairs = [pair.split(":") for pair in widths.split(",")]
    assert len(pairs) == 2
    assert all(place == chart and 250 < int(place) < width for place, chart in pairs)


PHONE = """<iframe id="phone" src="report.html" style="width: 900px; height: 900px; border: 0"></iframe>
<script>
const phone = document.getElementById("phone"), page = () => phone.contentDocument;
const chartOf = (plot) => plot.querySelector(".main-svg").getBoundingClientRect().width;
const widths = () => [...page().querySelectorAll(".plot")].map((plot) => `${plot.clientWidth}:${chartOf(plot)}`);
phone.onload = () => {
  const seen = () => { if (page().body.clientWidth < 450) document.body.dataset.widths = widths().join(); };
  new phone.contentWindow.ResizeObserver(seen).observe(page().body);  // told after the page's own observers
  phone.style.width = "WIDTHpx";
};
</script>
"""


def browse(folder, address, *more):
    """A real browser without network: the page after its scripts ran, and what the console said."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", *more]
    result = subprocess.run(
        ["chromium", *options, "--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return result.stdout, result.stderr
