"""The page in a real browser: headless Chromium through its driver."""

import math
import shutil

import pytest
from reading import table_of
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from synthetic_runs import RunMaker, every_defense, every_status, random_answers, replaced

from bench.ledger.intervals import wilson_interval
from reports.render.printing import print_numbers
from reports.report import write_run_report
from reports.runs.rows import all_attacks
from reports.runs.selection import selected
from reports.statistics.estimates import Estimate
from reports.statistics.protocols import survival
from reports.tables.table import Quantity

pytestmark = pytest.mark.needs("chromium", "chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE, DESKTOP = 375, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def visit(browser, address):
    """Open a page. On a busy machine the driver's `get` alone may return while the last page is still shown."""
    browser.get(address)
    loaded = "return document.URL === arguments[0] && document.readyState === 'complete'"
    WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(loaded, address))


@pytest.fixture(scope="module", params=["complete", "published", "incomplete"])
def page(request, browser, tmp_path_factory):
    run = {
        "complete": every_defense,
        "published": lambda: every_defense(dataset="mnist"),
        "incomplete": every_status,
    }[request.param]()
    index = write_run_report(run, tmp_path_factory.mktemp("report"))
    shutil.move(index, index.parent.with_suffix(".html"))  # alone: nothing beside it to load
    visit(browser, index.parent.with_suffix(".html").as_uri())
    return browser


def widen(browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_the_console_is_silent(page):
    assert page.get_log("browser") == []


@pytest.mark.parametrize(
    ("value", "quantity"),
    [
        (0.9955, Quantity("accuracy", 1, percent=True)),
        (0.8955, Quantity("accuracy", 1, percent=True)),
        (0.0001, Quantity("accuracy", 1, percent=True)),
        (0.125, Quantity("accuracy", percent=True)),
        (2.675, Quantity("median", 2)),
        (0.0004, Quantity("median", 3)),
        (0.0, Quantity("median", 3)),
    ],
)
def test_the_leaderboard_rounds_as_the_tables_do(page, value, quantity):
    script = "printed(100 * arguments[0], arguments[1]) + '%'" if quantity.percent else "printedDistance(...arguments)"
    shown = page.execute_script(f"return {script}", value, quantity.decimals)
    assert shown == print_numbers({quantity.name: Estimate(value)}, [quantity])


@pytest.mark.parametrize(("survivors", "samples"), [(0, 1), (1, 1), (3, 40), (20, 40), (999, 1000), (5000, 10000)])
def test_the_leaderboards_interval_is_pythons(page, survivors, samples):
    shown = page.execute_script("return wilson(arguments[0] / arguments[1], arguments[1])", survivors, samples)
    assert shown == pytest.approx([float(end) for end in wilson_interval(survivors / samples, samples)], abs=1e-12)


@pytest.mark.parametrize(("errors", "draws", "times"), [(0, 20, 10), (2, 20, 10), (20, 20, 1), (7, 20, 1), (3, 40, 20)])
def test_the_leaderboards_survival_is_pythons(page, errors, draws, times):
    shown = page.execute_script("return survival(...arguments)", errors, draws, times)
    assert shown == pytest.approx(float(survival(errors, draws, times)), abs=1e-12)


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_juts_out_of_the_window(page, width):
    widen(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_wide_tables_scroll_within_their_container_and_by_keyboard(page):
    widen(page, PHONE)
    region = page.find_element(By.CSS_SELECTOR, ".scroll:has(#summary_L2)")
    assert region.get_attribute("scrollWidth") > region.get_attribute("clientWidth")
    assert region.get_attribute("tabIndex") == "0"


def test_curves_and_galleries_are_drawn(page):
    assert len(page.find_elements(By.CSS_SELECTOR, "img.curves")) == 3
    assert len(page.find_elements(By.CSS_SELECTOR, "table.gallery")) == 6
    drawn = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert page.execute_script(drawn)


def test_footnotes_lead_to_their_text(page):
    for link in page.find_elements(By.CSS_SELECTOR, "sup a"):
        assert page.find_element(By.ID, link.get_attribute("hash")[1:]).text


def leaderboard_rows(browser, norm="L2"):
    rows = browser.find_elements(By.CSS_SELECTOR, f"#{norm} .leaderboard tbody tr")
    return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]


def printed(run, norm="L2"):
    """Accuracy and median of each defense in the summary's last row, as the leaderboard prints them."""
    table = table_of(run, "summary", norm)
    cells = table.row(all_attacks(norm))
    return {
        name: tuple(print_numbers(cell.values, [quantity]) for quantity in reversed(table.quantities))
        for name, cell in cells.items()
    }


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    run = every_defense()
    return run, write_run_report(run, tmp_path_factory.mktemp("leaderboard"), formats=["html"]).as_uri()


@pytest.fixture
def choosing(browser, reported):
    run, address = reported
    visit(browser, address)
    widen(browser, DESKTOP)
    return run


def named(rows):
    return {name.removesuffix("†"): (accuracy, median) for name, accuracy, _, median, *_ in rows}


def test_the_leaderboard_says_what_the_summary_says(browser, choosing):
    assert named(leaderboard_rows(browser)) == printed(choosing)


def test_the_best_comes_first_until_another_column_is_chosen(browser, choosing):
    accuracies = [float(row[1].rstrip("%")) for row in leaderboard_rows(browser)]
    assert accuracies == sorted(accuracies, reverse=True)
    browser.find_element(By.CSS_SELECTOR, "#L2 .leaderboard th:first-child button").send_keys(Keys.ENTER)
    names = [row[0] for row in leaderboard_rows(browser)]
    assert names == sorted(names)
    assert browser.find_element(By.CSS_SELECTOR, "#L2 [aria-sort]").get_attribute("aria-sort") == "ascending"


def test_choosing_attacks_recomputes_the_worst_case(browser, choosing):
    choose(browser, "deepfool", "bim")
    assert named(leaderboard_rows(browser)) == printed(selected(choosing, attacks=["deepfool", "bim"]))


def test_another_epsilon_recomputes_the_accuracies(browser, choosing):
    field = browser.find_element(By.CSS_SELECTOR, "#L2 .controls input[type=number]")
    field.clear()
    field.send_keys("0.5")
    expected = printed(replaced(choosing, thresholds={**choosing.manifest.thresholds, "L2": 0.5}))
    assert named(leaderboard_rows(browser)) == expected


def test_beyond_the_ball_of_a_bounded_attack_the_leaderboard_says_so(browser, choosing):
    note = browser.find_element(By.CSS_SELECTOR, "#L2 .leaderboard [role=status]")
    assert not note.text
    field = browser.find_element(By.CSS_SELECTOR, "#L2 .controls input[type=number]")
    field.clear()
    field.send_keys("2")
    assert note.text.endswith("pgd:bounded (ε=1.5).")


def test_a_part_of_a_name_picks_defenses(browser, choosing):
    browser.find_element(By.CSS_SELECTOR, "#L2 .controls input[type=search]").send_keys("adv_")
    assert {row[0].removesuffix("†") for row in leaderboard_rows(browser)} == {"adv_linf", "adv_l2"}


def test_numbers_are_over_the_images_with_a_result(browser, tmp_path):
    visit(browser, write_run_report(every_status(), tmp_path, formats=["html"]).as_uri())
    rows = {row[0].removesuffix("†"): row[1:] for row in leaderboard_rows(browser)}
    assert named(leaderboard_rows(browser)) == printed(every_status())
    assert rows["binary_cnn"][0] == "33%"
    assert rows["binary_cnn"][-1] == "1 (on 3 of 5 images)"
    assert rows["nearest_neighbour"][-1] == "1 (incomplete) (on 4 of 5 images)"
    assert rows["cnn"][0] == "20%"


def test_a_defense_that_every_attack_failed_on_is_unknown(browser, tmp_path):
    maker = RunMaker(["cnn"], 2)
    maker.attack("pgd", ["L2"])
    maker.cell("cnn", "pgd", "L2", [math.nan] * 2, reasons={0: "timeout", 1: "timeout"})
    visit(browser, write_run_report(maker.make(), tmp_path, formats=["html"]).as_uri())
    assert leaderboard_rows(browser)[0][1] == "unknown (2/2)"


@pytest.fixture
def random_page(browser, tmp_path):
    run = random_answers()
    visit(browser, write_run_report(run, tmp_path, formats=["html"]).as_uri())
    return run


def protocols_printed(run):
    """Majority, one draw and best of 10 of each defense in the strength table's last row; of one that is deterministic
    all are the same."""
    cells = table_of(run, "strength", "Linf").row(all_attacks("Linf"))
    protocols = [Quantity(name, percent=True) for name in ("accuracy", "one draw", "best of 10")]
    return {
        name: [
            print_numbers({each.name: cell.values.get(each.name, cell.values["accuracy"])}, [each])
            for each in protocols
        ]
        for name, cell in cells.items()
    }


def test_the_leaderboard_shows_the_protocols_of_the_strength_table(browser, random_page):
    def shown():
        rows = leaderboard_rows(browser, "Linf")
        return {name.removesuffix("†"): [accuracy, *rest[1:3]] for name, accuracy, *rest in rows}

    headers = [header.text for header in browser.find_elements(By.CSS_SELECTOR, "#Linf .leaderboard th[scope=col]")]
    assert headers[1:5] == ["accuracy", "95 % interval", "one draw", "best of 10"]
    assert shown() == protocols_printed(random_page)
    choose(browser, "boundary", norm="Linf")
    assert shown() == protocols_printed(selected(random_page, attacks=["boundary"]))


def test_the_leaderboard_counts_undecided_images(browser, random_page):
    rows = {row[0].removesuffix("†"): row[-1] for row in leaderboard_rows(browser, "Linf")}
    assert rows["eabs"] == "2 (on 4 of 5 images)"  # boundary broke the one that the other could not decide
    assert rows["cnn"] == "2"
    choose(browser, "eot_pgd:bounded (ε=0.3)", norm="Linf")
    rows = {row[0].removesuffix("†"): row[-1] for row in leaderboard_rows(browser, "Linf")}
    assert rows["eabs"] == "1 (1 undecided) (on 4 of 5 images)"


def test_at_another_epsilon_nothing_is_known_of_the_likeliest_images(browser, random_page):
    field = browser.find_element(By.CSS_SELECTOR, "#Linf .controls input[type=number]")
    field.clear()
    field.send_keys("0.2")
    rows = {row[0].removesuffix("†"): row for row in leaderboard_rows(browser, "Linf")}
    assert rows["eabs"][3:5] == ["—", "—"]
    assert rows["cnn"][3:5] == [rows["cnn"][1]] * 2


def choose(browser, *labels, norm="L2"):
    """Leaves only these attacks chosen."""
    browser.find_element(By.CSS_SELECTOR, f"#{norm} .leaderboard summary").click()
    for label in browser.find_elements(By.CSS_SELECTOR, f"#{norm} .choices label"):
        if label.text not in labels:
            label.find_element(By.TAG_NAME, "input").send_keys(Keys.SPACE)


def test_the_leaderboard_tells_who_was_spared_attacks(browser, tmp_path):
    maker = RunMaker(["cnn", "abs"], 4)
    for attack, defenses in (("fgm", ["cnn", "abs"]), ("pgd", ["cnn"])):
        maker.attack(attack, ["L2"])
        for defense in defenses:
            maker.cell(defense, attack, "L2", [0.5] * 4)
    visit(browser, write_run_report(maker.make(), tmp_path, formats=["html"]).as_uri())
    used = {row[0].removesuffix("†"): row[-1] for row in leaderboard_rows(browser)}
    assert used == {"cnn": "2", "abs": "1 (spared others)"}
