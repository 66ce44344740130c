"""The explorer in headless Chromium: every control works by mouse and keyboard, without messages or requests."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from ensdiff.data.images import to_png, to_uint8
from ensdiff.report.explorer import write_explorer
from tests.explorations import HOSTILE, exploration, groups, items, scored

pytestmark = pytest.mark.browser

WIDTHS = (360, 768, 1280)
CONTRAST = """
const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
const context = canvas.getContext("2d", {willReadFrequently: true});
const rgb = (...colours) => {
  context.clearRect(0, 0, 1, 1);
  for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => c / 255);
};
const light = (c) => { const [r, g, b] = c.map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const poor = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest("option, script, style, .skip")) continue;
  const grounds = [];
  for (let up = node; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
  const style = getComputedStyle(node);
  const colour = node.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(rgb(...grounds)), light(rgb(...grounds, colour))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5 && !node.disabled) poor.push(`${node.tagName} ${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return poor;
"""


class Tab:
    """One browser window, with its messages and requests."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, page, width=1280, dark=False, fragment=""):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        self.driver.get(page.as_uri() + fragment)
        self.driver.execute_script("localStorage.clear()")
        self.until(lambda: "influence" in self.text("cursor-text"))

    def until(self, condition):
        """Wait until the condition holds, and evaluate it again if the page replaces elements meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, 20, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda _: condition())

    def one(self, css):
        return self.driver.find_element("css selector", css)

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def text(self, ident):
        return self.js("return document.getElementById(arguments[0]).textContent", ident)

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def click(self, css):
        def act():
            node = self.one(css)
            self.js("arguments[0].scrollIntoView({block: 'center'})", node)
            node.click()
            return True

        self.until(act)

    def keys(self, *keys):
        """Send keys to the element that has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focus(self, css):
        self.js("arguments[0].focus()", self.one(css))

    def canvas(self, css):
        """Return the pixels of a canvas, (H, W, 4)."""
        uri = self.js("return document.querySelector(arguments[0]).toDataURL()", css)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))

    def picture(self, css):
        return self.js("return document.querySelector(arguments[0]).src", css)

    def requests(self):
        """Return the addresses that were requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def driver():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    server = shutil.which("chromedriver")
    if not browser or not server:
        pytest.skip("no headless browser: install chromium and chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(server))
    yield driver
    driver.quit()


@pytest.fixture
def tab(driver):
    """Yield a window, and fail if it logged to the console or requested anything but files and data."""
    driver.get_log("browser"), driver.get_log("performance")
    tab = Tab(driver)
    yield tab
    assert driver.get_log("browser") == []
    assert [url for url in tab.requests() if not url.startswith(("file://", "data:", "about:"))] == []


@pytest.fixture(scope="module")
def flat():
    return items(top=12)


@pytest.fixture(scope="module")
def nested():
    return groups()


@pytest.fixture(scope="module")
def pages(flat, nested, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    grids = {step: to_png(np.full((4, 4, 1), step / 30)) for step in (10, 20)}
    return {
        "flat": write_explorer(folder / "flat.html", exploration(flat[2], [flat[3]], grids=grids)),
        "beside": write_explorer(folder / "beside.html", exploration(flat[2], [flat[3]]), inline=0),
        "scored": write_explorer(
            folder / "scored.html", exploration(flat[2], [flat[3]._replace(scores=scored(flat[2], 20, low=-0.02))])
        ),
        "captioned": write_explorer(
            folder / "captioned.html", exploration(flat[2], [flat[3]], captions=[HOSTILE, "dog", "long" * 40])
        ),
        "nested": write_explorer(folder / "nested.html", exploration(nested[2], nested[3])),
    }


def units_shown(tab):
    ids = tab.js("return [...document.querySelectorAll('#units-body .pick')].map((node) => node.id)")
    return [int(ident[5:]) for ident in ids]


def test_captions_of_conditions(tab, pages):
    """They are in the gallery, in the pictures' names and above the sample, as text, and wrap on a phone."""
    tab.open(pages["captioned"], width=360)
    assert [node.text for node in tab.all("#gallery .caption")] == [HOSTILE, "dog", "long" * 40]
    tab.click("#gallery label:nth-child(2) input")
    tab.until(lambda: tab.text("caption") == "Condition: dog")
    assert tab.one("#gallery label:nth-child(2) img").get_attribute("alt") == "sample 1, dog"
    assert tab.one("#original").get_attribute("alt") == "sample 1, dog, as generated"
    tab.click("#gallery label:nth-child(1) input")
    tab.until(lambda: tab.text("caption") == f"Condition: {HOSTILE}")
    assert tab.js("return window.hacked") is None
    assert tab.js("return document.documentElement.scrollWidth") <= 360
    tab.open(pages["flat"])
    assert not tab.one("#caption").is_displayed()


def test_samples_by_click_and_by_arrow_keys(tab, pages, flat):
    from selenium.webdriver import Keys

    _, _, samples, layer = flat
    tab.open(pages["flat"])
    for b, act in ((2, lambda: tab.click("#gallery label:nth-child(3) input")), (1, lambda: tab.keys(Keys.ARROW_LEFT))):
        act()
        tab.until(lambda b=b: tab.text("sample-title") == f"Sample {b}")
        expected = "data:image/png;base64," + base64.b64encode(to_png(np.asarray(samples.images[b]))).decode()
        assert tab.picture("#original") == tab.picture("#under") == expected
        tab.until(lambda b=b: units_shown(tab) == layer.att.units[b, :8].tolist())
        assert f"radius {layer.radius_B[b]:.3g}" in tab.text("radius")


def test_a_unit_shows_its_counterfactual_difference_and_members(tab, pages, flat):
    _, _, samples, layer = flat
    tab.open(pages["flat"])
    unit = int(layer.att.units[0, 3])
    tab.click(f"#pick-{unit}")
    name = layer.data.unit_names[unit]
    tab.until(lambda: f"Without {name} the sample moves by {layer.att.influence[0, 3]:.3g}" in tab.text("message"))
    without = to_uint8(layer.image_BTHWC[0, 3])
    assert tab.picture("#without").endswith(base64.b64encode(to_png(without)).decode())
    gap = np.abs(without.astype(int) - to_uint8(np.asarray(samples.images[0])))[..., 0]
    tab.until(lambda: (tab.canvas("#difference")[..., 0] == np.minimum(255, 4 * gap)).all())
    tab.click("#gain option[value='1']")
    tab.until(lambda: (tab.canvas("#difference")[..., 1] == gap).all())
    tab.click("#signed")
    tab.until(lambda: "grey means no difference" in tab.text("difference-caption"))
    assert f"{gap.max() / 255:.3g} at most" in tab.one("#difference").get_attribute("aria-label")
    drawn = [
        ["on" in i.get_attribute("class") for i in row.find_elements("css selector", "i")] for row in tab.all(".word")
    ]
    word = layer.code.rows(unit)[0].astype(bool).tolist()
    assert drawn == [word, [not bit for bit in word]]


def test_scores_of_another_method_and_their_verdict(tab, pages, flat):
    _, _, samples, layer = flat
    tab.open(pages["flat"])
    assert not tab.one("#scores").is_displayed()
    scores = scored(samples, 20)
    tab.open(pages["scored"])
    tab.until(lambda: len(tab.all("#scores-body tr")) == 6)
    names = [row.find_element("css selector", "button").text for row in tab.all("#scores-body tr")]
    assert names == [layer.data.unit_names[unit] for unit in scores.units[0, :6]]
    assert [cell.text for cell in tab.all("#scores-body tr:first-child td")] == ["0.1 ± 0.012", "0.02"]
    assert tab.text("scores-verdict").startswith("Attributable to ")
    assert "Warning: the interval reaches 0" in tab.text("scores-judgement")
    tab.click("#gallery label:nth-child(2) input")
    tab.until(lambda: tab.text("scores-verdict") == "Unattributable at level 0.1.")
    unit = next(int(unit) for unit in scores.units[1, :6] if unit in layer.att.units[1])
    tab.click(f"#score-{unit}")
    tab.until(lambda: f"Without {layer.data.unit_names[unit]} the sample moves by" in tab.text("message"))


def test_units_are_found_by_their_names(tab, pages, flat):
    """A name or an id selects the unit; what is typed is text."""
    layer = flat[3]
    tab.open(pages["beside"])
    unit = int(layer.landscape.units[0, -1])
    name = layer.data.unit_names[unit]
    for text in (str(unit), name.upper()[1:]):
        tab.focus("#find")
        tab.js("document.getElementById('find').select()")
        tab.keys(text)
        tab.until(lambda: tab.all(f"#found-{unit}"))
        assert name in tab.text(f"found-{unit}")
    tab.click(f"#found-{unit}")
    tab.until(lambda: tab.all("#removed button") and name[:20] in tab.all("#removed button")[0].text)
    tab.js("document.getElementById('find').select()")
    tab.focus("#find")
    tab.keys("<img src=x>\n")
    tab.until(lambda: tab.text("found-note") == "No item on this page is called so.")
    assert not tab.one("#found").is_displayed()
    assert tab.all("img[src='x']") == []


def test_several_units_and_sets_without_an_answer(tab, pages, flat):
    params, _, _, layer = flat
    tab.open(pages["flat"])
    units = layer.att.units[0]
    known = next(iter(layer.sets[0]))
    tab.click(f"#pick-{known[0]}")
    for unit in known[1:]:
        tab.focus(f"#tick-{unit}")
        tab.keys(" ")
        tab.until(lambda unit=unit: tab.one(f"#tick-{unit}").is_selected())
    removal = layer.sets[0][known]
    tab.until(lambda: f"moves by {removal.influence:.3g}" in tab.text("message"))
    assert tab.picture("#without").endswith(base64.b64encode(to_png(removal.image)).decode())
    assert tab.js("return document.activeElement.id") == f"tick-{known[-1]}"  # the focus stays where it was
    assert len(tab.all("#removed button")) == len(known)
    tab.click("#removed button")
    tab.until(lambda: len(tab.all("#removed button")) == len(known) - 1)

    shown = [int(u) for u in units[:8]]
    pairs = [(a, b) for a in shown for b in shown if a < b and not params.code.survivors([a, b]).any()]
    other = [
        (a, b)
        for a in shown
        for b in shown
        if a < b and params.code.survivors([a, b]).any() and (a, b) not in layer.sets[0]
    ]
    tab.click(f"#pick-{pairs[0][0]}")
    tab.click(f"#tick-{pairs[0][1]}")
    tab.until(lambda: "No member survives" in tab.text("message"))
    assert tab.text("missing") == "no survivor"
    assert tab.one("#missing").is_displayed()
    assert not tab.one("#without").is_displayed()
    tab.click(f"#pick-{other[0][0]}")
    tab.click(f"#tick-{other[0][1]}")
    tab.until(lambda: "not computed in advance" in tab.text("message"))
    assert (
        tab.text("command") == f"python -m experiments.sample --run=runs/x --n=3 --remove={other[0][0]},{other[0][1]}"
    )
    assert f"{int(params.code.survivors(list(other[0])).sum())} member" in tab.text("message")
    for _ in other[0]:
        tab.click("#removed button")
    tab.until(lambda: "Nothing is removed" in tab.text("message"))
    assert tab.text("command") == "" or not tab.one("#command").is_displayed()


def test_the_divider_by_keys_and_by_dragging(tab, pages):
    from selenium.webdriver import ActionChains, Keys

    tab.open(pages["flat"])

    def at():
        return tab.js("return getComputedStyle(document.getElementById('over')).clipPath")

    assert at() == "inset(0px 0px 0px 50%)"
    tab.focus("#divide")
    tab.keys(Keys.ARROW_RIGHT)
    assert at() == "inset(0px 0px 0px 51%)"
    assert tab.one("#divide").get_attribute("aria-valuetext") == "51 % as generated, 49 % without"
    tab.keys(Keys.HOME)
    assert at() == "inset(0px)" or at().endswith(" 0%)")
    wipe = tab.one("#wipe")
    tab.js("arguments[0].scrollIntoView({block: 'center'})", wipe)
    quarter = wipe.size["width"] // 4
    ActionChains(tab.driver).move_to_element(wipe).click_and_hold().move_by_offset(quarter, 0).release().perform()
    assert 73 <= int(tab.one("#divide").get_attribute("value")) <= 77


def test_the_table_sorts_and_loads_the_rest(tab, pages, flat):
    _, _, _, layer = flat
    for page in ("flat", "beside"):
        tab.open(pages[page])
        assert len(units_shown(tab)) == 8
        tab.click("#more")
        tab.until(lambda: len(units_shown(tab)) == 12)
        assert units_shown(tab) == layer.att.units[0].tolist()
        assert not tab.one("#more").is_displayed()
        tab.click("#units-head th[aria-sort] button")
        tab.until(lambda: units_shown(tab) == layer.att.units[0, ::-1].tolist())
        assert tab.one("#units-head th[aria-sort]").get_attribute("aria-sort") == "ascending"
        button = next(b for b in tab.all("#units-head button") if b.text == "p")
        button.click()
        tab.until(lambda: "p" in tab.one("#units-head th[aria-sort]").text)
        last = int(layer.att.units[0, -1])
        tab.click(f"#pick-{last}")
        tab.until(lambda: f"moves by {layer.att.influence[0, -1]:.3g}" in tab.text("message"))


def test_the_landscape_by_keys_and_clicks(tab, pages, flat):
    from selenium.webdriver import ActionChains, Keys

    _, _, _, layer = flat
    field = layer.landscape
    tab.open(pages["flat"])
    assert tab.text("landscape-note").startswith("All 20 items, predicted")
    tab.focus("#cursor")
    tab.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    unit = int(field.units[0, 2])
    tab.until(
        lambda: tab.text("cursor-text").startswith(f"{layer.data.unit_names[unit]} (class {unit % 3}): rank 3 of 20")
    )
    assert f"predicted influence {field.influence[0, 2]:.3g}" in tab.text("cursor-text")
    assert tab.one("#cursor").get_attribute("aria-valuetext").startswith(f"unit {unit}, rank 3 of 20")
    tab.keys(Keys.END)
    last = int(field.units[0, -1])
    tab.until(lambda: "rank 20 of 20" in tab.text("cursor-text"))
    assert "not removed exactly" in tab.text("cursor-text")
    tab.click("#only")
    tab.until(lambda: "not computed in advance" in tab.text("message"))
    assert tab.text("command").endswith(f"--remove={last}")
    tab.click("#sort option[value='number']")
    tab.until(lambda: tab.text("cursor-text").startswith(HOSTILE))
    tab.click("#add")
    tab.until(lambda: len(tab.all("#removed button")) == 2)
    strip = tab.one("#strip")
    tab.js("arguments[0].scrollIntoView({block: 'center'})", strip)
    ActionChains(tab.driver).move_to_element_with_offset(strip, strip.size["width"] // 2 - 5, 0).click().perform()
    tab.until(lambda: tab.text("cursor-text").startswith("picture 19 "))
    tab.click("#sort option[value='class']")
    tab.until(lambda: "(class 0)" in tab.text("cursor-text"))
    assert np.ptp(tab.canvas("#strip")[..., 2]) > 50  # something is drawn


def test_classes_summarise_the_landscape(tab, pages, flat):
    _, data, _, layer = flat
    tab.open(pages["flat"])
    rows = {row.find_element("css selector", "th").text: row for row in tab.all("#classes-body tr")}
    assert sorted(rows) == ["0", "1", "2"]
    influence = np.empty(20)
    influence[layer.landscape.units[0]] = layer.landscape.influence[0]
    for label in range(3):
        cells = [cell.text.strip() for cell in rows[str(label)].find_elements("css selector", "td")]
        mine = influence[data.labels == label]
        assert int(cells[0]) == len(mine)
        np.testing.assert_allclose([float(cells[1]), float(cells[3])], [mine.mean(), mine.max()], rtol=0.01)
    before = tab.canvas("#strip")
    tab.click("#class-1")
    tab.until(lambda: tab.one("#class-1").get_attribute("aria-pressed") == "true")
    assert (tab.canvas("#strip") != before).any()
    button = next(b for b in tab.all("#classes-head button") if b.text == "Class")
    button.click()
    assert [node.text for node in tab.all("#classes-body th")] == ["0", "1", "2"]


def test_items_and_groups_are_both_removed(tab, pages, nested):
    from selenium.webdriver import Keys

    params, _, _, (_, outer) = nested
    tab.open(pages["nested"])
    tab.focus("#layers input")
    tab.keys(Keys.ARROW_RIGHT)
    tab.until(lambda: units_shown(tab) == outer.att.units[0].tolist())
    assert "all 4 groups" in tab.text("radius")
    assert tab.text("landscape-note") == "All 4 groups, each by exact ablation."
    assert not tab.one("#classes").is_displayed()
    first = int(outer.att.units[0, 0])
    name = params.code.group_code().names[first]
    tab.until(lambda: f"Without {name} the sample moves by" in tab.text("message"))
    assert len(tab.all(f"#pick-{first} img")) == 4
    tab.click("#gallery label:nth-child(2) input")
    tab.until(lambda: units_shown(tab) == outer.att.units[1].tolist())
    code = params.code.group_code()
    a, b = next(
        (a, b) for a in range(4) for b in range(a) if code.survivors([a, b]).any() and (b, a) not in outer.sets[1]
    )
    tab.click(f"#pick-{a}")
    tab.click(f"#tick-{b}")
    tab.until(lambda: "not computed in advance" in tab.text("message"))
    assert tab.text("command") == f"python -m experiments.sample --run=runs/x --n=3 --groups --remove={b},{a}"


def test_training_curves_and_grids(tab, pages):
    from selenium.webdriver import Keys

    tab.open(pages["flat"])
    assert len(tab.all(".curve")) == 8
    tab.click("#member option[value='5']")
    assert [node.get_attribute("data-member") for node in tab.all(".curve.on")] == ["5"]
    assert tab.text("grid-caption") == "after 20 steps"
    tab.focus("#grid-step")
    tab.keys(Keys.ARROW_LEFT)
    assert tab.text("grid-caption") == "after 10 steps"


def test_the_address_opens_the_same_view(tab, pages, flat):
    _, _, _, layer = flat
    tab.open(pages["flat"])
    tab.click("#gallery label:nth-child(3) input")
    tab.until(lambda: units_shown(tab) == layer.att.units[2, :8].tolist())
    tab.click(f"#pick-{int(layer.att.units[2, 1])}")
    address = tab.driver.current_url
    tab.open(pages["flat"], fragment=address[address.index("#") :])
    assert tab.text("sample-title") == "Sample 2"
    tab.until(lambda: f"moves by {layer.att.influence[2, 1]:.3g}" in tab.text("message"))
    tab.open(pages["flat"], fragment="#layer=7&sample=-1&removed=99,x")  # nonsense is ignored
    assert tab.text("sample-title") == "Sample 0"


def test_themes(tab, pages):
    def ground():
        colour = tab.js("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    for dark in (False, True):
        tab.open(pages["flat"], dark=dark)
        assert (ground() < 200) == dark
        assert tab.one("#theme").get_attribute("aria-pressed") == str(dark).lower()
        tab.click("#theme")
        assert (ground() < 200) != dark
        tab.driver.refresh()
        assert (ground() < 200) != dark  # the choice is kept
        tab.js("localStorage.clear()")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["flat", "nested"])
def test_fits_every_width_with_enough_contrast(tab, pages, page, width, dark, tmp_path):
    tab.open(pages[page], width, dark)
    assert tab.js("return document.documentElement.scrollWidth") <= width
    assert tab.js(CONTRAST) == []
    for css in ("#theme", "#gallery input", "#divide", "#units-body .pick", "#strip", "#sort"):
        box = tab.one(css).rect
        assert box["width"] > 20
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width + 1
    overlaps = tab.js(
        "return [...document.querySelectorAll('#units-body tr')].filter(row => { const boxes = "
        "[...row.cells].filter(c => c.checkVisibility())"
        ".map(c => [c.getBoundingClientRect(), c.scrollWidth - c.clientWidth]);"
        "return boxes.some(([box, over], i) => over > 1 || (i && box.left < boxes[i - 1][0].right - 1)); }).length"
    )
    assert overlaps == 0
    size = {
        "x": 0,
        "y": 0,
        "width": width,
        "height": tab.js("return document.documentElement.scrollHeight"),
        "scale": 1,
    }
    shot = tab.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": size})
    path = tmp_path / f"{page}_{width}_{'dark' if dark else 'light'}.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 30


def test_every_control_has_a_name_and_can_be_reached_by_tab(tab, pages):
    from selenium.webdriver import Keys

    tab.open(pages["nested"])
    nodes = tab.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "slider", "checkbox", "radio", "combobox", "image", "table", "region", "group", "link")
    found = [n for n in nodes if not n["ignored"] and n.get("role", {}).get("value") in roles]
    assert len(found) > 40
    assert [n["role"]["value"] for n in found if not n.get("name", {}).get("value")] == []
    wanted = set(tab.js(
        "return [...document.querySelectorAll('button, input:not([type=radio]), select, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility() && !e.disabled && e.id).map(e => e.id)"
    ))  # fmt: skip
    tab.focus(".skip")
    reached = set()
    for _ in range(90):
        tab.keys(Keys.TAB)
        ident, outline = tab.js("const e = document.activeElement; return [e.id, getComputedStyle(e).outlineStyle]")
        reached.add(ident)
        assert outline != "none" or ident == "", ident
    assert wanted <= reached


def test_hostile_names_do_nothing_but_show(tab, pages):
    tab.open(pages["flat"])
    tab.click("#more")
    tab.click("#sort option[value='number']")
    tab.until(lambda: tab.text("cursor-text").startswith(HOSTILE))
    tab.click("#only")
    tab.until(lambda: tab.all("#removed button") and HOSTILE[:20] in tab.all("#removed button")[0].text)
    assert tab.js("return window.hacked === undefined && document.images.length > 0")
    assert tab.all("img[src='x']") == []


def test_files_beside_the_page_are_requested_only_when_used(tab, pages):
    tab.open(pages["beside"])
    asked = {url.rpartition("/")[2] for url in tab.requests() if url.startswith("file")}
    assert "landscape-0-0.js" in asked
    assert not asked & {"landscape-0-1.js", "more-0-1.js"}
    tab.click("#gallery label:nth-child(2) input")
    tab.until(lambda: "landscape-0-1.js" in {url.rpartition("/")[2] for url in tab.requests()})


def test_the_page_reports_a_lost_folder(tab, pages, tmp_path):
    lonely = shutil.copy(pages["beside"], tmp_path / "beside.html")
    tab.driver.get(lonely.as_uri())
    tab.until(lambda: "could not be read: keep that folder beside this page" in tab.text("message"))
    assert all("ERR_FILE_NOT_FOUND" in entry["message"] for entry in tab.driver.get_log("browser"))
