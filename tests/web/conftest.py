"""A real browser on the real application with a scripted model. What is missing on this machine fails the run with a sentence."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web import catalogs
from polyhead.client.annotate.web.announcing import AnnouncingServer
from polyhead.client.annotate.web.app import make_app
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, begin

ROOT = Path(__file__).resolve().parents[2]
AXE = Path(os.environ.get("POLYHEAD_AXE", ROOT / ".venv" / "web" / "node_modules" / "axe-core" / "axe.min.js"))
SHOTS = ROOT / "build" / "screenshots"
HINT = "run it by `make test-web`, which installs playwright and axe-core; chromium and fonts-noto-cjk are Debian packages"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
TEXTS = [
    "The sky looks blue because air scatters short waves more than long ones.\n\nAt noon the light's path is short.",
    "Blue light bends most. <b>not bold</b> <script>alert(1)</script>",
    "天空是蓝色的，因为空气分子散射短波光更强。",
    "It mirrors the sea.",
]


@dataclass
class Served:
    """The application on a port of its own, in a thread."""

    address: str
    db: Database
    model: FakeModel
    loop: asyncio.AbstractEventLoop

    def on_loop(self, act: Callable[[], None]) -> None:
        """What belongs to the event loop, done there."""
        self.loop.call_soon_threadsafe(act)

    def account(self, role: str = "annotator", locale: str = "en") -> str:
        """The sign-in code of somebody new."""
        name = f"{role}-{os.urandom(4).hex()}"
        return accounts.create_account(self.db, role, name, locale=locale, languages=("en", "zh-Hans"))[1]


RIGHT_TO_LEFT = "ar"  # no catalog of one is here yet: English words on pages whose direction is that language's
PHONE = {"viewport": {"width": 320, "height": 700}, "has_touch": True, "is_mobile": True}
WIDE = {"viewport": {"width": 1280, "height": 860}, "has_touch": True}
VIEWS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (language, how the browser is set)
    "light": ("en", {"color_scheme": "light", **WIDE}),
    "dark": ("en", {"color_scheme": "dark", **WIDE}),
    "phone": ("en", {"color_scheme": "light", **PHONE}),
    "light-zh": ("zh-Hans", {"color_scheme": "light", **WIDE}),
    "phone-dark-zh": ("zh-Hans", {"color_scheme": "dark", **PHONE}),
    "rtl": (RIGHT_TO_LEFT, {"color_scheme": "light", **WIDE}),
    "phone-dark-rtl": (RIGHT_TO_LEFT, {"color_scheme": "dark", **PHONE}),
}


def views(*short: str) -> list[Any]:
    """All of VIEWS, those that are not named marked as long."""
    return [name if name in short else pytest.param(name, marks=pytest.mark.long) for name in VIEWS]


@pytest.fixture(autouse=True)
def right_to_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language that is written from right to left."""
    read = catalogs._read
    monkeypatch.setitem(catalogs.NAMES, RIGHT_TO_LEFT, "العربية")
    monkeypatch.setattr(catalogs, "_read", lambda locale: "{}" if locale == RIGHT_TO_LEFT else read(locale))


def look(page: Any, name: str) -> None:
    """axe-core finds nothing, nothing scrolls sideways, and a screenshot is there for people to look at."""
    assert_accessible(page, name)
    width = page.evaluate("() => document.documentElement.scrollWidth")  # innerWidth grows with what is too wide on a phone
    assert width <= page.viewport_size["width"], f"{name} scrolls sideways: {width} wide"
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def serve(path: Path, *configs: str) -> Iterator[Served]:
    db = Database.create(path)
    for text in configs:
        begin(db, read_project(text))
    model = FakeModel(TEXTS * 100)
    config = uvicorn.Config(make_app(db, model.client), host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    listening: queue.Queue[tuple[int, asyncio.AbstractEventLoop]] = queue.Queue()
    server = AnnouncingServer(config, lambda port: listening.put((port, asyncio.get_running_loop())))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        port, loop = listening.get(timeout=20)
        yield Served(f"http://127.0.0.1:{port}", db, model, loop)
    finally:
        server.should_exit = True
        thread.join(20)
        db.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from serve(tmp_path / "a.db", CHOOSE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium. A session-wide Playwright would break the async tests of the same run."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(f"playwright is not installed: {HINT}")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail(f"there is no chromium on this machine: {HINT}")
    fonts = subprocess.run(["fc-list", ":lang=zh"], capture_output=True, text=True, check=False).stdout
    if not fonts:
        pytest.fail(f"no font has Chinese characters, pages would show boxes: {HINT}")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """A page that fails the test if anything goes wrong in it, or goes to another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(10_000)
    opened = context.new_page()
    problems = watch(opened, served)
    yield opened
    context.close()
    assert not problems, problems


def watch(page: Any, served: Served) -> list[str]:
    """What the page's console says, and requests to elsewhere."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((served.address, "data:")) else problems.append(request.url))
    return problems


def sign_in(page: Any, served: Served, code: str) -> None:
    """By keys."""
    page.goto(f"{served.address}/login")
    page.wait_for_selector("#code:focus")
    page.keyboard.type(code)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{served.address}/consent")
    for _ in range(2):
        focus_next(page, "input[type=checkbox]:not(:checked)")
        page.keyboard.press("Space")
    focus_next(page, "button.primary")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{served.address}/")


def focus_next(page: Any, selector: str) -> None:
    """Tab to the next element that matches, as somebody without a mouse does."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no way to {selector} by the Tab key")


def assert_accessible(page: Any, what: str) -> None:
    """axe-core finds nothing. It comes over the devtools protocol, so the page's own policy stays as it is."""
    if not AXE.exists():
        pytest.fail(f"axe-core is not installed: {AXE}. {HINT}")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    # A target half below the sticky row of letters is one scroll away; axe would call it too small. Focused ones are kept clear of it.
    page.evaluate("() => document.querySelector('.letters')?.style.setProperty('position', 'static')")
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    wrong = [f"{each['id']}: {each['nodes'][0]['html'][:120]} {each['nodes'][0]['failureSummary'][:200]}" for each in found["violations"]]
    assert not wrong, f"{what}: {wrong}"
    page.evaluate("() => document.querySelector('.letters')?.style.removeProperty('position')")
    assert len(found["passes"]) > 10, f"{what}: axe looked at nothing"
