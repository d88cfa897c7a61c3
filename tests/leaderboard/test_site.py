"""The site: what it writes of records that are not trusted, and how it works in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persbench.leaderboard.aggregate import boards, iter_records
from persbench.leaderboard.reported import read_reported
from persbench.leaderboard.site import slug, write_site
from PIL import Image
from playwright import sync_api
from synthetic import gap, record, write

from persbench.errors import PersbenchError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync"
).split()
EVIL = "<script>alert(1)</script>"
PLOT = "Chart.getChart(document.querySelector('figure[data-chart=tradeoff] canvas'))"
KEYS = {"a": "a" * 40, "c": "c" * 40, "p": "b" * 40}


def draw(folder: Path, name: str, value: int, size: int = 64) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        levels = np.full((size, size, 3), value + number, dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{name}-{number:03d}.png")


def output_folder(folder: Path) -> Path:
    """Records of four methods under two attacks, with a few pictures."""
    records: list[dict[str, Any]] = []
    for method, threat, leak, levels in (
        ("shield", "model", 0.15, None),
        ("veil", "image", 0.35, 8.0),
        (EVIL, "image", 0.5, 8.0),
        ("none", "none", 0.6, None),
    ):
        for attack, more in (("lora", 0.0), ("jpeg+lora", 0.08)):
            for subject in ("ada", "boris"):
                seen = {"detected": (0.9, 1.0), "alignment": (0.9, 0.95)}
                made = record(method, subject, attack, leak + more, levels=levels or 0.0, allowed=levels, threat=threat, shares=seen)
                made["pictures"] = {"attacked": KEYS["a"], "control": KEYS["c"]}
                made["stages"]["protect"]["key"] = KEYS["p"]
                records.append(made)
    records.append(gap("skipped", "needs <b>attention</b>", "veil", "carl", "textual-inversion"))
    write(folder, records)
    draw(folder / "store" / "generate" / KEYS["a"], "picture", 60)
    draw(folder / "store" / "generate" / KEYS["c"], "picture", 90, 300)
    for subject in ("ada", "boris"):
        draw(folder / "store" / "protect" / KEYS["p"], subject, 120)
    return folder


def build(output: Path, site: Path, **more: Any) -> Path:
    found = boards(iter_records(output), lambda track: {"standard": ("lora", "jpeg+lora")})
    return write_site(site, found, output, {"avatars": "they are `not` <i>other</i> numbers"}, **more)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A written site."""
    folder = tmp_path_factory.mktemp("leaderboard")
    build(
        output_folder(folder / "runs"), folder / "site", papers=read_reported(), evidence={"000.json": "verified", "001.json": "verified"}
    )
    return folder / "site"


def test_text_of_records_stays_text(site) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert EVIL not in text
        assert "<b>attention" not in text
        for found in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL):
            json.loads(found)
            assert "<" not in found
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in (site / "index.html").read_text("utf-8")
    assert "needs &lt;b&gt;attention&lt;/b&gt;" in (site / "index.html").read_text("utf-8")
    assert "are <code>not</code> &lt;i&gt;" in (site / "index.html").read_text("utf-8")


def test_each_row_says_what_it_rests_on(site) -> None:
    rows = (site / "index.html").read_text("utf-8").partition("<tbody>")[2].partition("</tbody>")[0].split("<tr")[1:]
    marks = {(re.findall(r'html">([^<]*)</a></th>', row)[0], re.findall(r'class="badge (\w+)">\1<', row)[0]) for row in rows}
    assert ("shield", "verified") in marks
    assert ("veil", "measured") in marks
    assert not any(mark == "reported" for _, mark in marks)  # those stand in tables of their own
    assert "DiffAdvPerturbationBench" in (site / "index.html").read_text("utf-8")


def test_names_of_records_are_no_paths(site) -> None:
    assert slug("../../etc/passwd") != slug("../../etc-passwd")
    assert {path.name for path in (site / "methods").iterdir()} == {f"{slug(name)}.html" for name in ("shield", "veil", "none", EVIL)}


def test_links_lead_somewhere_and_nothing_comes_from_the_network(site) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        targets = re.findall(r'(?:href|src)="([^"]*)"', text)
        assert len(targets) > 5
        for target in targets:
            assert "//" not in target
            path, _, anchor = target.partition("#")
            found = (page.parent / path) if path else page
            assert target == "data:," or found.is_file(), f"{page.name}: {target}"
            assert not anchor or f'id="{anchor}"' in found.read_text("utf-8"), f"{page.name}: {target}"
    assert "http" not in (site / "assets" / "site.js").read_text("utf-8")


def test_pictures_are_few_small_and_of_the_store_alone(tmp_path) -> None:
    output = output_folder(tmp_path / "runs")
    draw(tmp_path / "secret", "picture", 10)
    for number, path in enumerate(sorted((output / "records").glob("*.json"))):
        made = json.loads(path.read_text("utf-8"))
        if made["cell"]["method"] == "shield":
            made["pictures"] = {"attacked": "../../../secret", "control": str(tmp_path / "secret")}
            path.write_text(json.dumps(made), "utf-8")
        assert number < 100
    (output / "store" / "generate" / KEYS["a"] / "picture-001.png").write_bytes(b"no picture")
    build(output, tmp_path / "site")
    shown = list((tmp_path / "site" / "pictures").iterdir())
    assert 0 < len(shown) < 20
    for path in shown:
        with Image.open(path) as picture:
            assert max(picture.size) <= 256
            assert picture.convert("RGB").getpixel((0, 0))[0] not in (10, 11)
    assert "Pictures of ada" not in (tmp_path / "site" / "methods" / "shield.html").read_text("utf-8")
    assert "not kept" in (tmp_path / "site" / "methods" / "veil.html").read_text("utf-8")


def test_a_folder_that_is_no_site_is_left_alone(tmp_path, site) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    output = output_folder(tmp_path / "runs")
    with pytest.raises(PersbenchError, match="holds something other than a site"):
        build(output, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    again = tmp_path / "again"
    shutil.copytree(site, again)
    (again / "methods" / "gone.html").write_text("old")
    build(output, again)
    assert not (again / "methods" / "gone.html").exists()


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser) -> Iterator[Any]:
    """A page that fails the test on a console error, an exception, a failed request, or one that leaves the folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)  # of machines that do other things as well
    opened, bad = context.new_page(), []
    opened.on("console", lambda message: bad.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: bad.append(str(error)))
    opened.on("requestfailed", lambda request: bad.append(f"failed: {request.url}"))
    opened.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else bad.append(request.url))
    opened.on("dialog", lambda dialog: (bad.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield opened
    context.close()
    assert bad == []


def names(page: Any) -> list[str]:
    return page.locator("#board tbody tr th").all_inner_texts()


def sorted_by(head: Any, order: str) -> None:
    """Sorting takes a turn of the browser's event loop or two."""
    sync_api.expect(head).to_have_attribute("aria-sort", order, timeout=60_000)


def test_sort_filter_and_open_a_method(page, site) -> None:
    page.goto(site.joinpath("index.html").as_uri())
    assert names(page) == ["shield", "veil", EVIL, "none"]
    head = page.locator("#board thead th").nth(2)
    sorted_by(head, "descending")
    assert page.locator("#board tbody tr").first.locator("td").first.inner_text().startswith("1")
    head.locator(".dt-column-order").focus()  # by keyboard
    page.keyboard.press("Enter")
    sorted_by(head, "ascending")
    sync_api.expect(page.locator("#board tbody tr th").first).to_have_text("none")
    page.locator("select[data-key=threat]").select_option("image")
    assert sorted(names(page)) == sorted(["veil", EVIL])
    row = page.locator("#board tbody tr", has_text="veil")
    assert row.locator("td").first.inner_text().startswith("1")  # among its own kind
    assert "2 of" in page.locator("#board-status").inner_text()
    page.locator("select[data-key=threat]").select_option("")
    page.get_by_role("searchbox").fill("shi")
    assert names(page) == ["shield"]
    page.get_by_role("searchbox").fill("")
    assert page.locator("select[data-key=set]").locator("option").count() > 2
    page.locator("select[data-key=set]").select_option("all")
    assert "incomplete" in page.locator("#board").inner_text()  # only one method met textual-inversion
    page.get_by_role("link", name="veil").first.click()
    page.wait_for_url("**/methods/veil.html")
    assert page.locator("h1").inner_text() == "veil"
    assert page.locator("img").count() >= 10
    assert page.evaluate("Promise.all([...document.images].map(image => image.decode()))") is not None
    assert all(page.evaluate("[...document.images].map(image => image.naturalWidth > 0 && image.alt.length > 5)"))
    page.locator("#attack-table tbody a").first.click()
    page.wait_for_url("**/attacks/jpeg-lora-*.html")
    assert page.locator("h1").inner_text() == "jpeg+lora"


def test_trade_off_shows_numbers_on_hover_and_opens_a_method(page, site) -> None:
    page.goto(site.joinpath("index.html").as_uri())
    place = page.evaluate(f"""() => {{
        const chart = {PLOT};
        const index = chart.data.datasets.findIndex(set => set.data.some(item => item.point.name === 'shield'));
        const {{x, y}} = chart.getDatasetMeta(index).data[0].getProps(['x', 'y'], true);
        return {{x, y}};
    }}""")
    canvas = page.locator("figure[data-chart=tradeoff] canvas")
    canvas.hover(position=place)
    page.wait_for_function(f"() => {PLOT}.tooltip.body?.length")  # drawn in the next frame
    shown = page.evaluate(PLOT + ".tooltip.body[0].lines")
    assert shown[0] == "shield"
    assert shown[1].startswith("protection 0.7")
    page.locator("figure select").select_option("linf_levels")
    page.locator("select[data-key=threat]").select_option("image")
    drawn = PLOT + ".data.datasets.flatMap(set => set.data.map(item => [item.point.name, item.x]))"
    assert sorted(page.evaluate(drawn)) == sorted([[EVIL, 8], ["veil", 8]])
    page.locator("select[data-key=threat]").select_option("model")
    place = page.evaluate(f"(({{x, y}}) => ({{x, y}}))({PLOT}.getDatasetMeta(0).data[0].getProps(['x', 'y'], true))")
    canvas.click(position=place)
    page.wait_for_url("**/methods/shield.html")


def test_theme_follows_the_system_until_it_is_chosen(page, site) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.goto(site.joinpath("index.html").as_uri())
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    assert dark != light
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(background) == light
    page.get_by_role("link", name="Attacks").click()
    page.wait_for_url("**/attacks.html")
    assert page.evaluate(background) == light


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_axe_finds_nothing_serious(page, site, scheme, width) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    attack = slug("jpeg+lora")
    others = (f"attacks/{attack}.html", "attacks.html", "flags.html") if (scheme, width) == ("light", 1280) else ()
    for name in ("index.html", "methods/veil.html", *others):
        page.goto(site.joinpath(name).as_uri())
        for closed in page.locator("details:not([open]) > summary").all():
            closed.click()
        found = axe.run(page, options={"preload": False, "resultTypes": ["violations"]}).response  # preload fetches stylesheets
        assert found["passes"], "axe ran"
        serious = [(each["id"], each["nodes"][0]["html"]) for each in found["violations"] if each["impact"] in ("serious", "critical")]
        assert serious == [], name
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} scrolls sideways at {width}: {wide}"
