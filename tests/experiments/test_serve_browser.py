"""The live explorer in headless Chromium."""

import base64
import threading

import numpy as np
import pytest

import ensdiff
from ensdiff.data.images import to_png
from tests.explorations import items
from tests.report.test_explorer_browser import Tab, driver  # noqa: F401

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")

from tests.serving import NAMES, TOKEN, served, session_of, slowly, until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def world():
    return items(NAMES, top=4, null=5)


@pytest.fixture(scope="module")
def started():
    """Return what is set when new samples are explored, which takes until it is cancelled for seeds from 1000."""
    return threading.Event()


@pytest.fixture(scope="module")
def site(world, started):
    """Yield the address and the worker of a server."""
    session = session_of(world)
    explore = session.source.explore

    def explored(samples):
        if len(samples) == 5:
            slowly(started)
        return explore(samples)

    object.__setattr__(session.source, "explore", explored)
    with served(session) as found:
        yield found


class LiveTab(Tab):
    """A window on the live page."""

    def visit(self, address, width=1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get(address)
        self.until(lambda: "influence" in self.text("cursor-text"))

    def type(self, css, text):
        node = self.one(css)
        node.clear()
        node.send_keys(text)


@pytest.fixture
def tab(driver, site):  # noqa: F811
    """Yield a window, and fail if it logged an error or requested anything but this server's own addresses."""
    driver.get_log("browser"), driver.get_log("performance")
    tab = LiveTab(driver)
    yield tab
    assert driver.get_log("browser") == []
    ours = (site[0], "data:", "about:", "blob:")
    assert [url for url in tab.requests() if not url.startswith(ours)] == []


def uri(image):
    return "data:image/png;base64," + base64.b64encode(to_png(image)).decode()


def test_any_units_are_removed(tab, site, world):
    params, _, samples, layer = world
    address, worker = site
    tab.visit(address)
    unlisted = [unit for unit in range(4, 20) if unit not in layer.att.units[0]]
    tab.click("#removed button")
    tab.type("#live-units", str(unlisted[0]))
    tab.click("#live-remove button")
    one = np.asarray(ensdiff.counterfactuals(params, samples[[0]], [unlisted[0]])[0, 0])
    tab.until(lambda: tab.picture("#without") == uri(one))
    assert tab.one("#without").is_displayed()
    moved = np.linalg.norm(one - np.asarray(samples.images[0]))
    assert f"Without picture {unlisted[0]} the sample moves by {moved:.3g};" in tab.text("message")
    assert not tab.one("#live-removal").is_displayed()
    partner = next(unit for unit in (2, 3) if params.code.survivors([unit, unlisted[0]]).any())
    tab.type("#live-units", NAMES[partner].lower())
    tab.keys("\n")
    both = np.asarray(ensdiff.counterfactuals(params, samples[[0]], [[unlisted[0], partner]])[0, 0])
    tab.until(lambda: tab.picture("#without") == uri(both))
    assert tab.one("#live-units").get_attribute("value") == ""
    assert tab.js("return location.hash").endswith(f"removed={partner},{unlisted[0]}")
    tab.until(lambda: (tab.canvas("#difference")[..., :3] > 0).any())
    tab.click("#gallery label:nth-child(3) input")
    tab.until(lambda: tab.text("sample-title") == "Sample 2")
    tab.until(worker.idle)


def test_a_name_that_fits_several_is_said(tab, site):
    tab.visit(site[0])
    tab.type("#live-units", "ada")
    tab.click("#live-remove button")
    tab.until(lambda: "id:2 (Ada L.), id:3 (Ada M.)" in tab.text("message"))
    assert tab.js("return window.hacked") is None
    tab.driver.get_log("browser")  # Chromium itself logs the status 400


def test_other_samples_are_drawn(tab, site, world):
    tab.visit(site[0])
    tab.type("#draw-form [name=n]", "2")
    tab.type("#draw-form [name=seed]", "7")
    tab.click("#draw-form button")
    tab.until(lambda: "?set=" in tab.driver.current_url)
    tab.until(lambda: "influence" in tab.text("cursor-text"))
    samples = ensdiff.sample(world[0], 7, 2, steps=3)
    assert [node.get_attribute("src") for node in tab.all("#gallery img")] == [
        uri(x) for x in np.asarray(samples.images)
    ]
    tab.type("#live-units", "11")
    tab.click("#removed button")
    tab.click("#live-remove button")
    expected = np.asarray(ensdiff.counterfactuals(world[0], samples[[0]], [11])[0, 0])
    tab.until(lambda: tab.picture("#without") == uri(expected))
    tab.click(".live a[href='?set=0']")
    tab.until(lambda: len(tab.all("#gallery img")) == 3)


def test_a_picture_is_dropped_on_the_page(tab, site, tmp_path):
    tab.visit(site[0])
    tab.js(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "mine.png", {type: "image/png"}));
        for (const kind of ["dragover", "drop"]) {
          document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }
        """,
        base64.b64encode(to_png(np.full((9, 9, 1), 0.5))).decode(),
    )
    tab.until(lambda: tab.one("#own-result").is_displayed())
    assert len(tab.all("#own-body tr")) == 6
    assert tab.text("own-method") == "By loss"
    assert tab.picture("#own-picture").startswith("data:image/png")
    first = tab.one("#own-body .pick")
    name, unit = first.text, first.get_attribute("id").removeprefix("own-")
    tab.click(f"#own-{unit}")
    tab.until(lambda: f"Without {name} the sample moves by" in tab.text("message"))
    wrong = tmp_path / "note.png"
    wrong.write_text("no picture")
    tab.one("#own-form [name=picture]").send_keys(str(wrong))
    tab.click("#own-form button")
    tab.until(lambda: "no picture that can be read" in tab.text("own-message"))
    assert not tab.one("#own-result").is_displayed()
    tab.driver.get_log("browser")


def test_two_tabs_and_a_closed_one(tab, site, started):
    """One computes while the other waits; when the first is closed, its computation ends."""
    address, worker = site
    first = tab.driver.current_window_handle
    tab.driver.switch_to.new_window("tab")
    tab.visit(address)
    tab.type("#draw-form [name=n]", "5")
    tab.click("#draw-form button")
    assert started.wait(30)
    tab.until(lambda: "dawdling" in tab.text("draw-working"))
    second = tab.driver.current_window_handle
    tab.driver.switch_to.window(first)
    tab.visit(address)
    tab.click("#removed button")
    tab.type("#live-units", "9")
    tab.click("#live-remove button")
    tab.until(lambda: "waiting for 1 other computation" in tab.text("live-removal"))
    assert tab.text("missing") == "computing …"
    tab.driver.switch_to.window(second)
    tab.driver.close()
    tab.driver.switch_to.window(first)
    tab.until(lambda: "Without picture 9 the sample moves by" in tab.text("message"))
    until(worker.idle)


def test_a_computation_is_cancelled_by_its_button(tab, site, started):
    address, worker = site
    started.clear()
    tab.visit(address)
    tab.type("#draw-form [name=n]", "5")
    tab.click("#draw-form button")
    assert started.wait(30)
    tab.click("#draw-working button")
    tab.until(lambda: tab.text("draw-message") == "Cancelled.")
    until(worker.idle)
    assert not tab.one("#draw-working").is_displayed()


@pytest.mark.parametrize("width", [360, 400, 768, 1280])
def test_the_first_screen_has_pictures_and_says_what_can_be_done(tab, site, width):
    tab.visit(site[0], width)
    assert tab.js("return document.documentElement.scrollWidth") <= width
    for css in ("#gallery img", ".live a[href='#draw']", ".live a[href='#own']"):
        box = tab.one(css).rect
        assert box["y"] + box["height"] < 800


def test_a_server_that_stopped_is_said(driver, world):  # noqa: F811
    tab = LiveTab(driver)
    with served(session_of(world)) as (address, _):
        tab.visit(address)
    tab.type("#live-units", "9")
    tab.click("#live-remove button")
    tab.until(lambda: "The server does not answer" in tab.text("message"))
    driver.get_log("browser")


def test_without_the_token_there_is_nothing(driver, site):  # noqa: F811
    driver.get(site[0].replace(TOKEN, "another"))
    assert "holds a token" in driver.find_element("css selector", "body").text
    driver.get_log("browser")
