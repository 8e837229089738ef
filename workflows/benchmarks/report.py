"""Open a report in headless Chromium: how long it takes, whether all of it works, and that it asks for nothing.

    python workflows/benchmarks/report.py grow demo_out big --slides 200   # a run folder with copies of its slides
    python workflows/benchmarks/report.py open big/report.html --pictures shots

`open` prints what it found as JSON and ends with 1 when something is wrong. It needs a `chromium` on the path.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tornado.websocket import WebSocketClientConnection, websocket_connect

WIDTH_PX, HEIGHT_PX = 1280, 900
PATIENCE_S = 60.0
MOST_SECONDS = 3.0
"""For 200 slides, from the address being given to the second frame after the load event."""

FIGURES = """[...document.querySelectorAll('svg.chart')].filter(chart => {
  const box = chart.getBoundingClientRect();
  return box.width > 100 && box.height > 40 && chart.querySelectorAll('path, use').length > 0;
}).length"""
PICTURES = """Promise.all([...document.images].map(image => {
  image.loading = 'eager';  // a lazy one waits until it is scrolled to
  return image.decode().then(() => image.naturalWidth > 0, () => false);
})).then(seen => seen.filter(Boolean).length)"""
DECODED = "[...document.images].filter(image => image.complete && image.naturalWidth > 0).length"
SHOWN = "[...document.querySelectorAll('%s')].filter(each => getComputedStyle(each).display !== 'none').length"
SECOND_FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


class Tab:
    """One tab of a browser, driven over its DevTools socket."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket = socket
        self.sent = 0
        self.events: list[dict[str, Any]] = []

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that come meanwhile are kept."""
        self.sent += 1
        mine = self.sent
        await self.socket.write_message(json.dumps({"id": mine, "method": method, "params": parameters}))
        while True:
            message = await self._next()
            if message.get("id") == mine:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return dict(message["result"])

    async def wait(self, event: str) -> None:
        """Wait for an event that has not come yet."""
        while event not in [each["method"] for each in self.events]:
            await self._next()

    async def value(self, expression: str) -> Any:
        """Return what an expression comes to in the page."""
        told = await self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(json.dumps(told["exceptionDetails"])[:500])
        return told["result"].get("value")

    async def _next(self) -> dict[str, Any]:
        text = await asyncio.wait_for(self.socket.read_message(), PATIENCE_S)
        if text is None:
            raise RuntimeError("the browser went away")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message


@contextlib.contextmanager
def browser() -> Iterator[str]:
    """Start a headless Chromium with a profile of its own, and give the address of its first tab's socket."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("There is no chromium on the path.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={profile}", f"--window-size={WIDTH_PX},{HEIGHT_PX}", "about:blank"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(profile) / "DevToolsActivePort"
            until = time.monotonic() + PATIENCE_S
            while not port.is_file() or not port.read_text().strip():
                if running.poll() is not None or time.monotonic() > until:
                    raise SystemExit("Chromium did not start.")
                time.sleep(0.05)
            with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list") as answer:
                tabs = json.load(answer)
            yield next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        finally:
            running.terminate()
            running.wait()


async def look(address: str, page: Path, pictures: Path | None) -> dict[str, Any]:
    """Open a report, use its filters, print it, and return what was found."""
    tab = Tab(await websocket_connect(address, max_message_size=1 << 30))
    for domain in ("Page", "Runtime", "Log", "Network"):
        await tab.ask(f"{domain}.enable")
    start = time.monotonic()
    await tab.ask("Page.navigate", url=page.resolve().as_uri())
    await tab.wait("Page.loadEventFired")
    await tab.value(SECOND_FRAME)
    seconds = time.monotonic() - start
    paint = await tab.value("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
    found: dict[str, Any] = {
        "page_mb": round(page.stat().st_size / 1e6, 2),
        "opens_in_s": round(seconds, 3),
        "first_paint_s": None if paint is None else round(paint / 1000, 3),
        "figures": await tab.value("document.querySelectorAll('svg.chart').length"),
        "figures_visible": await tab.value(FIGURES),
        "pictures": await tab.value("document.images.length"),
        "pictures_loaded_at_once": await tab.value(DECODED),
        "printed_pages": await printed(tab, pictures),
        "pictures_decoded": await tab.value(PICTURES),
        "slides": await tab.value("document.querySelectorAll('.slides > figure').length"),
        "filters": await tab.value("document.querySelectorAll('form.filter').length"),
        "wider_than_window": await tab.value("document.documentElement.scrollWidth > innerWidth"),
        "unnamed_controls": await unnamed(tab),
    }
    found |= await filtered(tab, pictures)
    await shoot(tab, pictures, "page")
    found["console"] = [said(event) for event in tab.events if said(event)]
    asked = [e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"]
    found["outside_requests"] = [url for url in asked if not url.startswith(("data:", page.resolve().as_uri()))]
    await tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    tab.events.clear()
    await tab.ask("Page.navigate", url=page.resolve().as_uri())
    await tab.wait("Page.loadEventFired")
    found["without_script"] = {
        "filters": await tab.value("document.querySelectorAll('form.filter').length"),
        "slides_shown": await tab.value(SHOWN % ".slides > figure"),
        "figures_visible": await tab.value(FIGURES),
    }
    return found


async def unnamed(tab: Tab) -> list[str]:
    """Return controls and pictures that a screen reader has no name for."""
    nodes = (await tab.ask("Accessibility.getFullAXTree"))["nodes"]
    roles = {"searchbox", "textbox", "combobox", "checkbox", "button", "link", "image", "img", "search", "navigation"}
    return [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"]
        and node.get("role", {}).get("value") in roles
        and not node.get("name", {}).get("value", "").strip()
    ]


async def filtered(tab: Tab, pictures: Path | None) -> dict[str, Any]:
    """Find one slide by its name, typed on the keyboard; then take the words away again."""
    if not await tab.value("!!document.querySelector('form[role=search] input[type=search]')"):
        return {}
    wanted = await tab.value("document.querySelector('.slides > figure:last-child .name').textContent")
    await tab.value("document.querySelector('form[role=search] input[type=search]').focus()")
    start = time.monotonic()
    await tab.ask("Input.insertText", text=wanted)
    shown = await tab.value(SHOWN % ".slides > figure")
    names = await tab.value(
        "[...document.querySelectorAll('.slides > figure:not(.filtered) .name')].map(each => each.textContent)"
    )
    seconds = time.monotonic() - start
    told = await tab.value("document.querySelector('form[role=search] output').value")
    await tab.value("document.querySelector('form[role=search]').scrollIntoView()")
    await shoot(tab, pictures, "filtered", whole=False)
    await tab.value("document.querySelector('form[role=search] input').select()")
    await tab.ask("Input.dispatchKeyEvent", type="keyDown", key="Delete", code="Delete", windowsVirtualKeyCode=46)
    await tab.ask("Input.dispatchKeyEvent", type="keyUp", key="Delete", code="Delete", windowsVirtualKeyCode=46)
    again = await tab.value(SHOWN % ".slides > figure")
    return {
        "filter": {
            "typed": wanted,
            "shown": shown,
            "finds_it": wanted in names,
            "says": told,
            "seconds": round(seconds, 3),
            "shown_after_clearing": again,
        }
    }


async def printed(tab: Tab, pictures: Path | None) -> int:
    """Print the page; return the number of sheets."""
    data = base64.b64decode(
        (await tab.ask("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.7))["data"]
    )
    if pictures is not None:
        (pictures / "printed.pdf").write_bytes(data)
    return data.count(b"/Type /Page\n") or data.count(b"/Type /Page")


async def shoot(tab: Tab, pictures: Path | None, name: str, *, whole: bool = True) -> None:
    """Take a picture of the page, where pictures are wanted."""
    if pictures is None:
        return
    more: dict[str, Any] = {}
    if whole:
        size = (await tab.ask("Page.getLayoutMetrics"))["cssContentSize"]
        more = {"captureBeyondViewport": True}
        more["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12000), "scale": 1}
    shot = await tab.ask("Page.captureScreenshot", format="png", **more)
    (pictures / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def said(event: dict[str, Any]) -> str:
    """Return what an event puts on the console; empty when it is none."""
    told = event["params"]
    if event["method"] == "Runtime.exceptionThrown":
        return str(told["exceptionDetails"].get("text", "exception"))
    if event["method"] == "Runtime.consoleAPICalled":
        return str([each.get("value") for each in told["args"]])
    if event["method"] == "Log.entryAdded":
        return str(told["entry"]["text"])
    return ""


def faults(found: dict[str, Any], most_seconds: float) -> list[str]:
    """Return what is wrong with a report, in words."""
    told = found.get("filter", {})
    bare = found["without_script"]
    wrong = {
        f"it took {found['opens_in_s']} s to open": found["opens_in_s"] > most_seconds,
        "the console is not empty": bool(found["console"]),
        "something outside was asked for": bool(found["outside_requests"]),
        "a figure is not visible": found["figures_visible"] < found["figures"],
        "a picture is broken": found["pictures_decoded"] < found["pictures"],
        "the page is wider than its window": found["wider_than_window"],
        "a control has no name": bool(found["unnamed_controls"]),
        "the filter does not find a slide": bool(told)
        and not (told["finds_it"] and 0 < told["shown"] < found["slides"]),
        "slides stay away after the filter": bool(told) and told["shown_after_clearing"] < found["slides"],
        "there is a control without its script": bare["filters"] > 0,
        "slides are missing without the script": bare["slides_shown"] < found["slides"],
        "figures are missing without the script": bare["figures_visible"] < found["figures"],
        "it does not print": not found["printed_pages"],
    }
    return [text for text, holds in wrong.items() if holds]


def grow(run: Path, out: Path, n_slides: int) -> Path:
    """Make a run folder with copies of the slides of another, each of an animal of its own, and its report."""
    import pandas as pd

    from histoquant import store
    from histoquant.analysis.counting import count_animals, count_groups
    from histoquant.batch import write_report
    from histoquant.inference import write_statistics
    from histoquant.report.run import read_run

    held = read_run(run)
    state, slides, regions, curve = dict(held.state), {}, [], []
    for number in range(n_slides):
        source = list(held.provenance)[number % len(held.provenance)]
        copy, animal = f"{source}_{number}", f"animal {number}"
        (out / "slides" / copy).mkdir(parents=True)
        for name in ("overview.png", "regions.csv"):
            shutil.copy(run / "slides" / source / name, out / "slides" / copy / name)
        told = held.provenance[source]
        identity = told["slide"] | {"slide_id": copy, "animal": animal}
        store.write_json(out / "slides" / copy / "provenance.json", told | {"slide": identity})
        slides[copy] = "done"
        for table, rows in ((held.regions, regions), (held.sensitivity, curve)):
            mine = table[table["slide_id"] == source].assign(slide_id=copy)
            rows.append(mine.assign(animal=animal) if "animal" in mine else mine)
    whole = pd.concat(regions, ignore_index=True)
    animals = count_animals(whole[whole["control"] == ""])
    tables = {"regions": whole, "sensitivity": pd.concat(curve, ignore_index=True), "animals": animals}
    tables["groups"] = count_groups(animals, reference_group=held.reference_group)
    for name, table in tables.items():
        store.write_csv(out / "tables" / f"{name}.csv", table)
    store.write_csv(out / "failures.csv", held.failures)
    store.write_json(out / "run.json", state | {"slides": slides})
    write_statistics(out)
    return write_report(out)


def main() -> None:
    """Grow a run, or open a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    growing = commands.add_parser("grow")
    growing.add_argument("run", type=Path)
    growing.add_argument("out", type=Path)
    growing.add_argument("--slides", type=int, default=200)
    opening = commands.add_parser("open")
    opening.add_argument("page", type=Path)
    opening.add_argument("--pictures", type=Path)
    opening.add_argument("--most-seconds", type=float, default=MOST_SECONDS)
    given = parser.parse_args()
    if given.command == "grow":
        start = time.monotonic()
        page = grow(given.run, given.out, given.slides)
        print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, made in {time.monotonic() - start:.1f} s")
        return
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
    with browser() as address:
        found = asyncio.run(look(address, given.page, given.pictures))
    found["faults"] = faults(found, given.most_seconds)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
