"""The report in a real browser, a headless Chromium, as a person uses it: Debian's chromium and chromium-driver."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fixed_runs import BASE, SIMPLE, TOP1, a_run, runs_of

from squeezenet_jax.report import Run, compare, write

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs the programs chromium and chromedriver"),
]

ATTACK = 'bypass=<script>document.title="attacked"</script><img src="https://example.org/x" onerror="document.title=1">'
ROWS = [BASE, SIMPLE, "bypass=complex", ATTACK, "bypass=tiny"]


def comparison() -> Any:
    """Five rows, one named like a script, the last without a result."""
    runs = runs_of() + [a_run("bypass=complex", seed, 0.9 + 0.02 * seed) for seed in range(2)]
    runs += [a_run(ATTACK, seed, 0.99) for seed in range(2)]
    return compare("bypass", "digits", BASE, [*runs, Run("bypass=tiny", {}, 0, "missing", 1234, 98_765, None)])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of a report and of one of two presets."""
    folder = tmp_path_factory.mktemp("pages")
    for name, what in (("one", comparison()), ("two", [comparison(), comparison()])):
        (folder / name).mkdir()
        write(what, folder / name)
    return {name: (folder / name / "report.html").as_uri() for name in ("one", "two")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1200,1600"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, pages: dict[str, str]) -> Iterator[Any]:
    """The report, opened; afterwards nothing is in the console, and nothing but the file itself was asked for."""
    browser.get_log("performance")
    browser.get(pages["one"])
    yield browser
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == {pages["one"]}
    assert browser.title == "bypass on digits"


def find(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements(By.CSS_SELECTOR, selector))


def settings(browser: Any, place: int = 0) -> list[str]:
    """The rows of a table of the page."""
    return [heading.get_attribute("textContent") for heading in find(find(browser, "table")[place], "tbody th")]


def heading(browser: Any, title: str) -> Any:
    return next(each for each in find(browser, "thead th") if each.text.startswith(title))


def hover(browser: Any, point: Any) -> str:
    """What is said beside a point when the pointer is on it; "" where nothing is."""
    webdriver.ActionChains(browser).move_to_element(find_in(point, "use")).perform()
    return said(browser)


def touch(browser: Any, element: Any) -> None:
    """A finger on the middle of an element."""
    box = element.rect
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    x, y = x - browser.execute_script("return scrollX"), y - browser.execute_script("return scrollY")
    touched = {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]}
    for event in (touched, {"type": "touchEnd", "touchPoints": []}):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)


def find_in(element: Any, selector: str) -> Any:
    return element.find_element(By.CSS_SELECTOR, selector)


def said(browser: Any) -> str:
    return str(find(browser, "#tip")[0].text)


def seen(browser: Any) -> Any:
    """The one drawing of top-1 against something that is seen."""
    (drawing,) = [each for each in find(browser, ".by svg") if each.is_displayed()]
    return drawing


def test_a_heading_sorts_by_mouse_and_keyboard_and_says_so(opened: Any) -> None:
    assert settings(opened) == ROWS
    by_top1 = [ATTACK, SIMPLE, BASE, "bypass=complex", "bypass=tiny"]
    find_in(heading(opened, "top-1"), "button").click()
    assert settings(opened) == by_top1
    assert heading(opened, "top-1").get_attribute("aria-sort") == "descending"
    find_in(heading(opened, "top-1"), "button").send_keys(Keys.ENTER)
    assert settings(opened) == [*by_top1[3::-1], "bypass=tiny"]  # what has no number stays last
    assert heading(opened, "top-1").get_attribute("aria-sort") == "ascending"
    find_in(heading(opened, "top-1"), "button").send_keys(Keys.SPACE)
    assert settings(opened) == ROWS and not find(opened, "[aria-sort]")
    find_in(heading(opened, "setting"), "button").click()
    assert settings(opened) == [ATTACK, "bypass=complex", BASE, SIMPLE, "bypass=tiny"]
    find_in(heading(opened, "Δ"), "button").click()
    assert settings(opened)[-2:] == [BASE, "bypass=tiny"]
    assert [each.text.split("\n")[0] for each in find(opened, "[aria-sort]")] == ["Δ top-1 [95 %]"]


def test_a_point_says_which_run_it_is_to_mouse_and_keyboard(opened: Any) -> None:
    (point,) = find(seen(opened), '.point[data-row="1"][data-seed="3"]')
    text = hover(opened, point)
    assert text.split("\n")[:2] == [f"{SIMPLE}, seed 3", f"top-1: {100 * TOP1[SIMPLE][3]:.2f} %"]
    marked = find(opened, ".on")
    assert {each.tag_name for each in marked} == {"tr", "g"}
    assert {each.get_attribute("data-seed") for each in marked if each.tag_name == "g"} == {"3"}
    row, closer = find(opened, "tr.on")  # the second is in the closer look, which has no row of the baseline
    assert row.text.startswith(SIMPLE) and closer.text.startswith(SIMPLE)
    webdriver.ActionChains(opened).move_to_element(find(opened, "h1")[0]).perform()
    assert said(opened) == "" and not find(opened, ".on")

    (first,) = find(seen(opened), '.point[tabindex="0"]')
    opened.execute_script("arguments[0].focus()", first)
    assert said(opened).startswith(f"{BASE}\nn: 4\ntop-1 %: 95.90 ± 0.71")
    webdriver.ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
    assert said(opened).startswith(f"{BASE}, seed 0")
    assert len(find(seen(opened), '.point[tabindex="0"]')) == 1  # a figure is one stop of the tabulator
    webdriver.ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    assert said(opened) == ""
    attacked = hover(opened, find(seen(opened), '.point[data-row="3"]:not([data-seed])')[0])
    assert attacked.startswith(ATTACK[:20])  # as text

    touch(opened, find_in(point, "use"))
    assert said(opened) == text
    touch(opened, find(opened, "h1")[0])
    assert said(opened) == ""


def test_the_axis_is_chosen(opened: Any) -> None:
    shown = {}
    for button in find(opened, 'input[type="radio"]'):
        button.click()
        shown[button.get_attribute("value")] = seen(opened).get_attribute("aria-label")
    assert shown == {
        "params": "top-1 against parameters, by setting",
        "macs": "top-1 against multiply-adds per image, by setting",
        "bytes": "top-1 against bytes of the weights, by setting",
        "images_per_second": "top-1 against images per second in training, by setting",
    }


def test_a_narrow_page_is_no_wider_than_its_window_and_sorts(opened: Any) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 380
        find_in(heading(opened, "top-1"), "button").click()
        assert settings(opened)[0] == ATTACK
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_a_script_all_is_there(opened: Any, pages: dict[str, str]) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.get(pages["one"])
        assert settings(opened) == ROWS and not find(opened, "button")
        find(opened, 'input[value="macs"]')[0].click()  # a style sheet chooses
        assert seen(opened).get_attribute("aria-label") == "top-1 against multiply-adds per image, by setting"
        title = find_in(find(seen(opened), '.point[data-row="1"][data-seed="3"]')[0], "title")
        assert title.get_attribute("textContent").startswith(f"{SIMPLE}, seed 3\n")  # which a browser shows
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_each_preset_of_a_page_is_explored_on_its_own(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["two"])
    tables = find(browser, "table")
    find_in(tables[3], "thead th:nth-child(3) button").click()
    names = [settings(browser, place) for place in (0, 1, 3)]
    assert names[:2] == [ROWS, ROWS] and names[2][0] == ATTACK
    sections = find(browser, "section")
    find(sections[1], 'input[value="bytes"]')[0].click()
    chosen = [seen(section).get_attribute("aria-label").split(",")[0] for section in sections]
    assert chosen == ["top-1 against parameters", "top-1 against bytes of the weights"]
    hover(browser, find(seen(sections[1]), '.point[data-row="1"][data-seed="3"]')[0])
    assert [len(find(section, "tr.on")) for section in sections] == [0, 2]
    assert browser.get_log("browser") == []
