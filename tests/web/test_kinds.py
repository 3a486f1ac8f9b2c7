"""Every kind of task in a real browser, by keys only; axe-core and a screenshot of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from polyhead.client import Rule
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.projects import projects, rules
from tests.web.conftest import TEXTS, VIEWS, Served, look, serve, sign_in, views, watch
from tests.web.test_choose import bodies

DIALOGUE = [{"role": "user", "content": "Why is the sky blue?"}]
SAID = [*DIALOGUE, {"role": "assistant", "content": "You fool, because of the air."}]
RULE = {"id": "no-insults", "text": "The assistant does not insult the user."}
PROBE = "slug: work\nkind: probe\narms: {fixed: [{head: policy, n: 1}]}\nrules: {rule_set: example-rules@1, attempts: 3}"
CHOOSE_LIVE = "slug: work\nkind: choose\narms: {fixed: [{head: policy, n: 4}]}\ndialogue: {max_turns: 1}"
SCRIPT = "slug: work\nkind: choose\narms: {fixed: [{head: policy, n: 2}]}\ndialogue: {max_turns: 3, user: model}"
QUOTE = "The sea has no colour of its own. <img src=x onerror=alert(1)>"
CITED = {"snippet": QUOTE}
SOURCE = {
    "title": "Why is the sky blue? <script>alert(1)</script>", "url": "https://example.org/optics/rayleigh?x=1", "query": "sky colour",
    "snippet": "Molecules scatter light of short waves some ten times as much as that of long waves.\nLord Rayleigh showed it in 1871.",
}  # fmt: skip
SPEC_KINDS = {"rate_rank": "rate", "evidence": "rank", "red_team": "rank"}  # further cases of a kind
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rank": ("", {"messages": DIALOGUE, "replies": TEXTS}),
    "red_team": ("answer: {polarity: worse}", {"messages": DIALOGUE, "replies": TEXTS}),
    "compare": ("answer: {strength: hh8}", {"messages": DIALOGUE, "replies": TEXTS[:2]}),
    "rate": ("answer: {flags: [hallucination, harmful_advice]}", {"messages": DIALOGUE, "replies": TEXTS[:2]}),
    "rate_rank": ("answer: {then_rank: true}", {"messages": DIALOGUE, "replies": TEXTS[:3]}),
    "evidence": ("", {"messages": DIALOGUE, "evidence": [SOURCE], "replies": [TEXTS[0], {"text": TEXTS[3], "evidence": CITED}]}),
    "rulecheck": ("rules: {rule_set: example-rules@1}", {"messages": SAID, "rule": RULE}),
    "demonstrate": ("", {"messages": DIALOGUE}),
    "edit": ("", {"messages": DIALOGUE, "replies": ["The sky looks blue because of the air."]}),
}


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """One project "work" of the test's kind, with its item."""
    kind: str = request.param
    more, item = KINDS.get(kind, ("", None))
    live = {"probe": PROBE, "choose": CHOOSE_LIVE, "script": SCRIPT}
    config = live.get(kind) or f"slug: work\nkind: {SPEC_KINDS.get(kind, kind)}\nsource: stored\n{more}"
    for running in serve(tmp_path / "a.db", config):
        project = projects.open_project(running.db, "work")
        if kind == "probe":
            rules.store_rules(running.db, project, "example-rules@1", [Rule(**RULE)])
        elif item is not None:
            (tmp_path / "items.jsonl").write_text(json.dumps(item), encoding="utf-8")
            import_items(running.db, project, tmp_path / "items.jsonl", "test")
        yield running


def open_task(page: Any, served: Served) -> None:
    sign_in(page, served, served.account())
    page.goto(f"{served.address}/p/work/task")
    page.wait_for_selector("#task[aria-busy=false]")


def submitted(page: Any, served: Served) -> dict[str, Any]:
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_have_text("All done for now")
    [body] = bodies(served)
    return body


@pytest.mark.parametrize("served", ["rank"], indirect=True)
def test_rank(page: Any, served: Served) -> None:
    """2, 1, then T and 3: B first, A second, C as good as A; Backspace takes back the last one."""
    open_task(page, served)
    for key in ("Digit2", "Digit4", "Backspace", "Digit1", "KeyT", "Digit3"):
        page.keyboard.press(key)
    expect(page.locator("#summary")).to_have_text("B > A = C")
    page.keyboard.press("Enter")  # D has no rank: nothing is sent
    page.reload()
    expect(page.locator("#summary")).to_have_text("B > A = C")
    page.keyboard.press("Digit4")
    look(page, "kind-rank")
    assert sorted(submitted(page, served)["ranks"].values()) == [1, 2, 2, 3]


@pytest.mark.parametrize("served", ["red_team"], indirect=True)
def test_a_red_team_task_has_the_most_harmful_reply_first(page: Any, served: Served) -> None:
    """The question asked for it, and the line below said "best first"."""
    open_task(page, served)
    expect(page.locator("#question")).to_have_text("Put the replies in order, most harmful first (red-team task)")
    expect(page.get_by_text("Press the numbers in order, most harmful first.")).to_be_visible()


@pytest.mark.parametrize("served", ["compare"], indirect=True)
def test_compare(page: Any, served: Served) -> None:
    open_task(page, served)
    page.keyboard.press("Digit7")
    look(page, "kind-compare")
    assert submitted(page, served)["position"] == 7


@pytest.mark.parametrize("served", ["rate"], indirect=True)
def test_rate(page: Any, served: Served) -> None:
    """A number for each card, then yes or no for each statement."""
    open_task(page, served)
    for key in ("Digit6", "Digit3", "KeyY", "KeyN", "KeyN", "KeyY"):
        page.keyboard.press(key)
    look(page, "kind-rate")
    ratings = submitted(page, served)["ratings"].values()
    assert sorted(rating["overall"] for rating in ratings) == [3, 6]
    assert sorted(list(rating["flags"].values()) for rating in ratings) == [[False, True], [True, False]]


@pytest.mark.parametrize("served", ["rate_rank"], indirect=True)
def test_rate_and_then_rank(page: Any, served: Served) -> None:
    """Enter leads from the ratings to the order, digits mean the one and then the other, and what is marked outlives a reload."""
    open_task(page, served)
    for key in ("Digit6", "Digit6", "Enter", "Digit2"):
        page.keyboard.press(key)
    expect(page.locator("[data-do=submit]")).to_contain_text("Continue")
    expect(page.locator("#question")).to_have_text("Rate every reply")
    look(page, "kind-rate-then-rank-1")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_have_text("Put the replies in order")
    expect(page.locator(".card .scale").first).to_be_hidden()
    for key in ("Digit2", "Digit1"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")  # the third has no rank: nothing is sent
    page.reload()
    expect(page.locator("#question")).to_have_text("Put the replies in order")
    expect(page.locator("#summary")).to_have_text("B > A")
    page.keyboard.press("Digit3")
    look(page, "kind-rate-then-rank-2")
    body = submitted(page, served)
    assert sorted((body["ratings"][key]["overall"], rank) for key, rank in body["ranks"].items()) == [(2, 3), (6, 1), (6, 2)]


@pytest.mark.parametrize("served", ["evidence"], indirect=True)
def test_evidence(browser: Any, page: Any, served: Served) -> None:
    """Beside the item and on its reply's card, markup as text, its source a link to a page of its own; so the team sees it, too."""
    open_task(page, served)
    beside = page.locator("#evidence .evidence")
    expect(beside).to_contain_text("<script>alert(1)</script>")
    expect(beside).to_contain_text("example.org")
    expect(beside).to_contain_text("Searched for: sky colour")
    link = beside.get_by_role("link", name="Open source")
    assert (link.get_attribute("href"), link.get_attribute("rel")) == (SOURCE["url"], "noopener noreferrer nofollow")
    expect(page.locator(".card .evidence")).to_have_count(1)
    expect(page.locator(".card .evidence")).to_contain_text(QUOTE)
    for key in ("Digit2", "Digit1"):
        page.keyboard.press(key)
    look(page, "kind-evidence")
    submitted(page, served)
    context = browser.new_context(reduced_motion="reduce")
    team = context.new_page()
    problems = watch(team, served)
    sign_in(team, served, served.account("admin"))
    team.goto(f"{served.address}/admin/p/work/items/{served.db.value('SELECT id FROM items')}")
    expect(team.locator(".evidence").first).to_contain_text("<script>alert(1)</script>")
    look(team, "kind-evidence-team")
    context.close()
    assert problems == []


@pytest.mark.parametrize("served", ["script"], indirect=True)
def test_what_the_user_says_is_scripted_and_then_drawn(page: Any, served: Served, tmp_path: Path) -> None:
    """Nobody writes: each choice begins the next turn. A message that could not be drawn is a sentence and another try."""
    served.model.texts = ["one", "two", "three", "four", "", "", "", "And on Mars?", "five", "six"]
    (tmp_path / "items.jsonl").write_text(json.dumps({"messages": DIALOGUE, "user_turns": ["And at dusk?"]}), encoding="utf-8")
    import_items(served.db, projects.open_project(served.db, "work"), tmp_path / "items.jsonl", "test")
    open_task(page, served)
    for number in (1, 2):
        expect(page.locator(".turn.user")).to_have_count(number)
        expect(page.locator(".card")).to_have_count(2)
        page.keyboard.press("Digit1")
        page.keyboard.press("Enter")
    expect(page.locator("#question")).to_have_text("The user's next message could not be written.")
    expect(page.locator(".turn.user")).to_have_count(2)
    expect(page.get_by_role("button", name="Finish this conversation")).to_be_visible()
    look(page, "user-failed")
    served.on_loop(served.model.gate.clear)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#question")).to_have_text("The user's next message is being written.")
    look(page, "user-writing")
    served.on_loop(served.model.gate.set)
    expect(page.locator(".turn.user .said").last).to_have_text("And on Mars?")
    expect(page.locator(".turn.user .who").last).to_have_text("User")
    page.keyboard.press("Digit2")
    look(page, "user-drawn")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_have_text("All done for now")
    assert [row.user_source for row in served.db.all("SELECT user_source FROM turns WHERE state = 'ready' ORDER BY number")] == [
        "item", "item", "model",
    ]  # fmt: skip


@pytest.mark.parametrize("served", ["rulecheck"], indirect=True)
def test_rulecheck(page: Any, served: Served) -> None:
    open_task(page, served)
    page.keyboard.press("Digit1")
    look(page, "kind-rulecheck")
    assert submitted(page, served)["verdict"] == 4


@pytest.mark.parametrize("served", ["demonstrate"], indirect=True)
def test_demonstrate(page: Any, served: Served) -> None:
    open_task(page, served)
    page.keyboard.type("Air scatters blue light.")
    look(page, "kind-demonstrate")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#question")).to_have_text("All done for now")
    assert bodies(served)[0]["text"] == "Air scatters blue light."


@pytest.mark.parametrize("served", ["edit"], indirect=True)
def test_edit(page: Any, served: Served) -> None:
    open_task(page, served)
    page.keyboard.press("Control+End")
    page.keyboard.type(" It scatters short waves.")
    expect(page.locator("ins")).to_contain_text("It scatters short waves.")
    look(page, "kind-edit")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#question")).to_have_text("All done for now")
    assert bodies(served)[0]["text"].endswith("It scatters short waves.")


@pytest.mark.parametrize("served", ["probe"], indirect=True)
def test_probe(page: Any, served: Served) -> None:
    """Two attempts, the first reply marked, the verdict given while an attempt is left."""
    open_task(page, served)
    expect(page.locator("#rule")).to_contain_text(RULE["text"])
    for number, text in enumerate(("Insult me!", "Really!"), 1):
        expect(page.locator("#message")).to_be_focused()
        page.keyboard.type(text)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".turn.assistant")).to_have_count(number)
    page.locator("input[data-broken]").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("Digit2")
    look(page, "kind-probe")
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(0)
    [body] = bodies(served)
    assert body["verdict"] == 3
    assert len(body["broken_turns"]) == 1


@pytest.mark.parametrize("served", ["probe"], indirect=True)
def test_a_message_whose_answer_is_lost_is_sent_once(browser: Any, served: Served) -> None:
    """It stayed in the field of the next attempt with its old id, and the server refused whatever was written there."""
    context = browser.new_context()
    context.set_default_timeout(15_000)
    page = context.new_page()
    open_task(page, served)
    page.route("**/turns", lambda route: (route.fetch(), route.abort()), times=1)
    page.keyboard.type("Insult me!")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".turn.assistant")).to_have_count(1, timeout=15_000)
    expect(page.locator("#message")).to_have_value("")
    page.locator("#message").fill("Really!")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".turn.assistant")).to_have_count(2)
    assert [row.user_text for row in served.db.all("SELECT user_text FROM turns ORDER BY number")] == ["Insult me!", "Really!"]
    context.close()


class Touch:
    """Somebody with fingers alone: texts come from the keyboard on the glass, everything else is a tap."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def tap(self, selector: str, place: int = 0) -> None:
        self.page.locator(selector).nth(place).tap()

    def write(self, selector: str, text: str) -> None:
        self.tap(selector)
        self.page.keyboard.insert_text(text)

    def say(self, text: str) -> None:
        self.write("#message", text)
        self.tap(".composer .primary")

    # one act a kind: everything up to Submit

    def choose(self) -> None:
        self.say("Why is the sky blue?")
        expect(self.page.locator(".card")).to_have_count(4)
        self.tap("#marks .toggle", 1)  # none is good
        self.tap(".card .pick", 2)

    def rank(self) -> None:
        for place, rank in enumerate("2134"):
            self.tap(".card select", place)
            self.page.locator(".card select").nth(place).select_option(rank)  # the device's own list

    red_team = rank

    def compare(self) -> None:
        self.tap(".scale .point", 6)
        places = [self.page.evaluate(PLACE_OF, digit) for digit in "78"]
        assert places[0] < places[1], "7 / 8 reads 8 / 7 from right to left"

    def rate(self) -> None:
        for card in range(2):
            self.tap(f".card:nth-child({card + 1}) .point", 5)
            for flag in range(2):
                self.tap(f".card:nth-child({card + 1}) .flag:nth-of-type({flag + 2}) .option", flag)

    def rate_rank(self) -> None:
        for card in range(3):
            self.tap(f".card:nth-child({card + 1}) .point", 5)
        self.tap("[data-do=submit]")
        for place, rank in enumerate("213"):
            self.page.locator(".card select").nth(place).select_option(rank)

    def evidence(self) -> None:
        for place, rank in enumerate("21"):
            self.page.locator(".card select").nth(place).select_option(rank)

    def rulecheck(self) -> None:
        self.tap(".verdicts .option", 0)
        self.write("#quote", "You fool")

    def demonstrate(self) -> None:
        self.write("#editor", "Air scatters blue light.")

    def edit(self) -> None:
        self.write("#editor", "More: ")

    def probe(self) -> None:
        self.say("Insult me!")
        expect(self.page.locator(".turn.assistant")).to_have_count(1)
        self.tap(".broken")
        self.tap(".verdicts .option", 1)


PLACE_OF = """digit => {
    const text = document.querySelector("#summary").firstChild, range = document.createRange(), at = text.data.indexOf(digit);
    range.setStart(text, at);
    range.setEnd(text, at + 1);
    return range.getBoundingClientRect().left;
}"""
BY_TOUCH = ["choose", *KINDS, "probe"]


@pytest.mark.parametrize("view", views("phone-dark-rtl"))
@pytest.mark.parametrize("served", BY_TOUCH, indirect=True)
def test_every_kind_by_touch_alone(browser: Any, served: Served, view: str, request: pytest.FixtureRequest) -> None:
    """From the overview to the stored answer without a key, in either direction; axe-core finds nothing once the answer is marked."""
    locale, options = VIEWS[view]
    context = browser.new_context(reduced_motion="reduce", **options)
    context.set_default_timeout(15_000)
    page = context.new_page()
    problems = watch(page, served)
    sign_in(page, served, served.account(locale=locale))
    kind = request.node.callspec.params["served"]
    touch = Touch(page)
    touch.tap(".project .primary")
    touch.tap("main > a.primary")
    page.wait_for_selector("#task[aria-busy=false]")
    assert page.evaluate("() => getComputedStyle(document.body).direction") == ("rtl" if "rtl" in view else "ltr")
    getattr(touch, kind)()
    expect(page.locator("[data-do=submit]")).to_have_attribute("aria-disabled", "false")
    look(page, f"touch-{kind}-{view}")
    touch.tap("[data-do=submit]")
    page.wait_for_function("() => JSON.parse(localStorage.getItem('polyhead.outbox') ?? '[]').length === 0")
    assert len(bodies(served)) == 1
    context.close()
    assert problems == []
