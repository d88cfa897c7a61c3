"""Screenshots of a leaderboard site: `persbench leaderboard --site DIR`, then `python docs/build_site_screenshots.py DIR`.

Needs the extra `dev` and Debian's chromium. Writes docs/images/site-*.png: the board on a desktop (light, dark) and on a phone, the
trade-offs, and the page of a method.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync"
).split()
DESKTOP, PHONE = {"width": 1360, "height": 960}, {"width": 390, "height": 844}


def save(name: str, taken: bytes) -> None:
    """A screenshot with few colours, so that the repository stays small."""
    picture = Image.open(io.BytesIO(taken)).convert("RGB").quantize(192, dither=Image.Dither.NONE)
    picture.save(IMAGES / f"site-{name}.png", optimize=True)


def main() -> None:
    """Open the site and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--method", help="whose page is shown; default: the best one with pictures")
    arguments = parser.parse_args()
    site = arguments.site.resolve()
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)

        def opened(path: str, size: Any, scheme: Any = "light", scale: float = 1) -> Any:
            page = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=scale).new_page()
            page.goto((site / path).as_uri())
            page.wait_for_function("document.fonts.status === 'loaded'")
            return page

        board = opened("index.html", DESKTOP)
        save("desktop", board.screenshot())
        save("tradeoffs", board.locator("figure[data-chart=tradeoff]").screenshot())
        links = board.locator("#board tbody th a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        save("desktop-dark", opened("index.html", DESKTOP, "dark").screenshot())
        save("phone", opened("index.html", PHONE, scale=2).screenshot())
        with_pictures = (link for link in links if "<img" in (site / link).read_text("utf-8"))
        wanted = f"methods/{arguments.method}.html" if arguments.method else next(with_pictures, links[0])
        method = opened(wanted, DESKTOP)
        save("method", method.screenshot(full_page=True))
        save("method-phone", opened(wanted, PHONE, "dark", 2).screenshot())
        browser.close()


if __name__ == "__main__":
    main()
