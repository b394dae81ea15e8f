"""The service's page and its API's description in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json

import pytest
import requests

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")

HISTORY = ["50", "172", "181"]
TAKE_OUT = "\N{MULTIPLICATION SIGN}"  # after the items of the history, which a click takes out


@pytest.fixture
def page(browser, service):
    """The page of a service; see ``opened``."""
    yield from opened(browser, service)


@pytest.fixture
def masked_page(browser, masked_service):
    """The page of a model that draws lists of several items."""
    yield from opened(browser, masked_service)


def opened(browser, service):
    """The page, whose errors fail the test, and which asks nobody but the service."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    errors, requested = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(service)
    page.get_by_label("Matching items").get_by_role("button").first.wait_for()
    yield page
    page.close()
    assert errors == []
    assert [url for url in requested if not url.startswith((service, "data:"))] == []


def add(page, *items):
    for item in items:
        page.get_by_label("Items of the history").fill(item)
        page.keyboard.press("Enter")


def shown(page) -> list[str]:
    """The ids of the items of the table, which stand after their titles."""
    return page.locator("#result tr td:nth-child(2) small").all_text_contents()


def message(page) -> str:
    """What is said once an answer is there."""
    playwright.expect(page.get_by_role("status")).not_to_have_text("…")
    return page.get_by_role("status").text_content()


def answer_with(page, *answers, path="recommend", status=200):
    """Answer requests in the place of the service, the last of ``answers`` again and again."""
    left = list(answers)

    def fulfil(route):
        route.fulfill(status=status, body=json.dumps(left.pop(0) if len(left) > 1 else left[0]))

    page.route(f"**/{path}", fulfil)


def lists_of(*items):
    ranked = [{"item_id": item, "score": -float(place)} for place, item in enumerate(items)]
    return {"lists": [{"items": ranked, "popular": False, "unknown_items": 0}]}


def test_its_lists_are_those_of_the_api(page, service):
    """With the defaults of both, seen items included; then with all settings changed."""
    add(page, *HISTORY)
    page.get_by_role("button", name="Recommend").click()
    assert message(page).startswith("10 items in ")
    answer = requests.post(f"{service}/recommend", json={"histories": [HISTORY]}, timeout=60).json()
    assert shown(page) == [item["item_id"] for item in answer["lists"][0]["items"]]

    page.get_by_label("List length").fill("7")
    page.get_by_label("Leave out seen items").check()
    page.get_by_label("Reverse steps", exact=True).select_option("4")
    page.get_by_label("Samples").fill("5")
    page.get_by_label("Diversity").fill("0.5")
    page.keyboard.press("Enter")
    assert message(page).startswith("7 items in ") and "spread of the samples" in message(page)
    changed = {"k": 7, "exclude_seen": True, "sampling_steps": 4, "samples": 5, "diversity": 0.5}
    answer = requests.post(f"{service}/recommend", json={"histories": [HISTORY], **changed}, timeout=60).json()
    assert shown(page) == [item["item_id"] for item in answer["lists"][0]["items"]]
    frequencies = [f"{round(100 * item['frequency'])} %" for item in answer["lists"][0]["items"]]
    assert page.locator("#result tr td:nth-child(5)").all_text_contents() == frequencies


def test_what_the_history_lacks_is_said(page):
    page.get_by_role("button", name="Recommend").click()
    assert "no known item in the history: the most popular items" in message(page)
    add(page, "50", "no such item")
    page.get_by_role("button", name="Recommend").click()
    assert "1 unknown item of the history left out" in message(page)


def test_the_keyboard_is_enough(page, service):
    """From the search to a list, and items taken out again, without the focus being lost."""
    page.get_by_label("Items of the history").focus()
    page.keyboard.type("17")
    listed = requests.get(f"{service}/search", params={"query": "17", "limit": 24}, timeout=60).json()
    found = [f"{item['title']} {item['item_id']}" for item in listed]
    choices = page.get_by_label("Matching items").get_by_role("button")
    playwright.expect(choices).to_have_text(found)
    for key in ("ArrowDown", "ArrowRight", "Enter", "Enter", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    chips = page.get_by_role("list", name="History").get_by_role("button")
    assert chips.all_text_contents() == [f"{item} {TAKE_OUT}" for item in (found[1], found[1], found[0])]
    page.keyboard.press("ArrowUp")
    playwright.expect(page.get_by_label("Items of the history")).to_be_focused()

    chips.nth(1).focus()
    page.keyboard.press("Enter")
    playwright.expect(chips.nth(1)).to_be_focused()
    playwright.expect(chips.nth(1)).to_have_text(f"{found[0]} {TAKE_OUT}")
    page.keyboard.press("Enter")
    playwright.expect(chips.nth(0)).to_be_focused()
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_label("Items of the history")).to_be_focused()

    page.get_by_label("List length").focus()
    page.keyboard.press("Enter")
    assert message(page).startswith("10 items in ")


def test_items_are_found_and_shown_by_their_titles(page):
    """In any case; Enter adds the first that is found, and the list names titles as well."""
    add(page, "TOY story", "50", "wrong trousers")
    chips = page.get_by_role("list", name="History").get_by_role("button")
    titles = ["Toy Story 1", "Star Wars 50", "Wrong Trousers, The 169"]
    playwright.expect(chips).to_have_text([f"{title} {TAKE_OUT}" for title in titles])
    page.get_by_role("button", name="Recommend").click()
    assert message(page).startswith("10 items in ")
    cells = page.locator("#result tr td:nth-child(2)").all_text_contents()
    assert len(cells) == 10 and all(cell.removesuffix(item).strip() for cell, item in zip(cells, shown(page)))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda page: add(page, "1"), "the history"),
        (lambda page: page.get_by_role("button", name=f"50 {TAKE_OUT}").click(), "the history"),
        (lambda page: page.get_by_label("List length").fill("5"), "the length"),
        (lambda page: page.get_by_label("Leave out seen items").check(), "seen items"),
        (lambda page: page.get_by_label("Reverse steps", exact=True).select_option("1"), "the steps"),
    ],
)
def test_no_list_stays_once_it_is_for_something_else(page, change, names):
    add(page, *HISTORY)
    page.get_by_role("button", name="Recommend").click()
    message(page)
    assert len(shown(page)) == 10
    change(page)
    assert shown(page) == [] and message(page) == "", names


def test_a_late_answer_is_not_shown(page):
    late = []
    page.route("**/recommend", lambda route: late.append(route))
    page.get_by_role("button", name="Recommend").click()
    playwright.expect(page.get_by_role("status")).to_have_text("…")
    page.get_by_label("List length").fill("5")
    with page.expect_response("**/recommend"):
        late[0].fulfill(body=json.dumps(lists_of("1", "2")))
    page.wait_for_timeout(100)
    assert shown(page) == [] and message(page) == ""


def test_errors_leave_no_list_and_use_the_words_of_the_page(page):
    add(page, *HISTORY)
    page.get_by_role("button", name="Recommend").click()
    message(page)
    answer_with(page, {"detail": "too much work waits: try again, or ask for less"}, status=503)
    page.get_by_role("button", name="Recommend").click()
    assert message(page) == "too much work waits: try again, or ask for less" and shown(page) == []
    page.unroute("**/recommend")
    page.route("**/recommend", lambda route: route.abort())
    page.get_by_role("button", name="Recommend").click()
    assert message(page) == "The service does not answer."
    page.unroute("**/recommend")

    page.get_by_label("List length").fill("1001")  # refused before it is sent
    page.get_by_role("button", name="Recommend").click()
    assert message(page) == "" and page.evaluate("document.querySelector('#k').validity.rangeOverflow")
    page.evaluate("document.querySelector('#settings').noValidate = true")
    page.get_by_role("button", name="Recommend").click()
    assert message(page) == "List length: Input should be less than or equal to 1000"


def test_the_effect_of_the_steps(page):
    button = page.get_by_role("button", name="Effect of the reverse steps")
    add(page, *HISTORY)
    button.click()
    playwright.expect(page.get_by_role("status")).to_contain_text("list")
    heads = page.locator("#result th").all_text_contents()
    assert heads == ["", "1 reverse step", *(f"{n} reverse steps" for n in (2, 4, 8, 16, 32))]
    answer_with(page, lists_of("1", "2"))
    button.click()
    playwright.expect(page.get_by_role("status")).to_contain_text("The reverse steps change nothing")
    page.unroute("**/recommend")
    answer_with(page, lists_of("1", "3"), lists_of("1", "2"))
    button.click()
    playwright.expect(page.get_by_role("status")).to_contain_text("32 reverse steps (1, 2, 2, 2, 2, 2 of 2)")


def test_what_a_model_does_not_do_is_not_offered(page, service):
    health = requests.get(f"{service}/healthz", timeout=60).json()
    other = {**health, "model": "SASRec", "max_sampling_steps": 1, "samples": False, "fields": []}
    answer_with(page, {**other, "diffusion_steps": None, "sampling_steps": None}, path="healthz")
    page.reload()
    playwright.expect(page.get_by_text("SASRec trained on")).to_be_visible()
    for name in ("Reverse steps", "Samples", "Diversity", "Items of a joint list", "Lists of items together"):
        playwright.expect(page.get_by_text(name, exact=name != "Samples")).to_be_hidden()
    answer_with(page, lists_of("1"))
    with page.expect_request("**/recommend") as sent:
        page.get_by_role("button", name="Recommend").click()
    assert sent.value.post_data_json == {"histories": [[]], "k": 10, "exclude_seen": False}


def test_lists_of_items_together_are_those_of_the_api(masked_page, masked_service):
    """With the service's own number of samples and all slots; then with all settings changed."""
    page, button = masked_page, masked_page.get_by_role("button", name="Lists of items together")
    add(page, *HISTORY, "no such item")
    for settings in ({}, {"next": 2, "samples": 4, "sampling_steps": 1, "exclude_seen": True}):
        if settings:
            page.get_by_label("Items of a joint list").fill("2")
            page.get_by_label("Samples").fill("4")
            page.get_by_label("Reverse steps", exact=True).select_option("1")
            page.get_by_label("Leave out seen items").check()
        button.click()
        said = message(page)
        asked = {"histories": [[*HISTORY, "no such item"]], **settings}
        (answer,) = requests.post(f"{masked_service}/next", json=asked, timeout=60).json()["histories"]
        assert said.startswith(f"{len(answer['lists'])} different lists in ")
        assert said.endswith("1 unknown item of the history left out")
        rows = page.locator("#result tr:has(td)").all()
        assert len(rows) == len(answer["lists"]) == settings.get("samples", 20)
        for row, one in zip(rows, answer["lists"]):
            assert row.locator("small").all_text_contents() == [item["item_id"] for item in one["items"]]
            shares = [f"({round(100 * item['frequency'])} %)" for item in one["items"]]
            assert [entry[entry.rindex("(") :] for entry in row.locator("li").all_text_contents()] == shares
            assert float(row.locator("td").last.text_content()) == pytest.approx(one["probability"], rel=5e-3)
    page.get_by_label("Items of a joint list").fill("4")  # refused before it is sent
    button.click()
    assert message(page) == "" and page.evaluate("document.querySelector('#next').validity.rangeOverflow")


def test_a_list_of_popular_items_has_no_probability(masked_page):
    masked_page.get_by_role("button", name="Lists of items together").click()
    assert "1 different list in " in message(masked_page)
    assert message(masked_page).endswith("no known item in the history: the most popular items")
    assert masked_page.locator("#result td").last.text_content() == ""


@pytest.mark.parametrize("width", [390, 1280])
def test_lists_of_items_together_fit_the_screen(masked_page, width):
    masked_page.set_viewport_size({"width": width, "height": 800})
    add(masked_page, *HISTORY)
    masked_page.get_by_role("button", name="Lists of items together").click()
    message(masked_page)
    assert masked_page.evaluate("document.documentElement.scrollWidth") <= width
    assert masked_page.evaluate("document.querySelector('#result').scrollWidth") <= width  # nor inside of it


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    add(page, *HISTORY)
    page.get_by_label("Samples").fill("3")
    page.get_by_role("button", name="Recommend").click()
    message(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_description_needs_nothing_from_elsewhere(page, service):
    """The ``page`` fixture fails where another host is asked."""
    page.goto(f"{service}/docs")
    playwright.expect(page.get_by_text("/recommend").first).to_be_visible()
