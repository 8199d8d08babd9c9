"""Pages in a browser: they sort, show all figures, ask no network, and clip nothing."""

import os
import shutil

import pytest

from flatkit.render.html.document import save_comparison
from tests.render.html_samples import EVERY, HOSTILE_NAME

api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of flatkit[test]")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium; tests/render/browser/install.sh installs it"
    ),
]
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        # As root, as in containers, Chromium has no sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {name: save_comparison(found, folder / f"{name}.html") for name, found in EVERY.items()}


@pytest.fixture
def visit(browser, files):
    """Open a page; at the end nothing may have been asked for, nor anything been complained of."""
    contexts, complaints, asked = [], [], []

    def open_page(name, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(files[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url.rpartition(".")[2] for url in asked} == {"html"}
    assert len(asked) == len(contexts)


BEYOND = """() => [...document.querySelectorAll('body *')].filter((one) => {
  const box = one.getBoundingClientRect();
  if (!box.width || one.closest('.skip')) return false;
  if (one.closest('svg') && one.tagName !== 'svg') return false;
  const cut = one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline'
    && one.clientWidth > 0 && !one.closest('svg');
  return box.right > innerWidth + 0.5 || box.left < -0.5 || cut;
}).map((one) => one.tagName + '.' + one.className + ': ' + one.textContent.slice(0, 40))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_clipped_or_scrolls_sideways(visit, name, width, scheme):
    page = visit(name, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(BEYOND) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_shown_with_its_text_as_text(visit, width):
    page = visit("several", width)
    drawings = page.locator("svg.drawing")
    assert drawings.count() == 3  # flatness, plane, curvature
    for number in range(drawings.count()):
        box = drawings.nth(number).bounding_box()
        assert box["width"] > 300 and box["height"] > 80
        assert drawings.nth(number).locator("text").count() > 5
    assert "R1/ρ²" in page.locator("#figure-flatness svg").text_content()


def _column(page, caption, title):
    table = page.locator(f'table:has(caption:text-is("{caption}"))').first
    cells = table.locator(f'tbody [data-label="{title}"]').all_inner_texts()
    head = table.locator(f'thead th:has(button:has-text("{title}"))')
    return head, cells


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_sort_numbers_as_numbers_also_by_the_keyboard(visit, width):
    page = visit("several", width)
    title = "top eigenvalue λmax"
    head, _ = _column(page, "Curvature", title)
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    expected = ["1.00 ± 0.10 ★", "9.13 ± 0.15", "10.17 ± 0.21"]
    assert _column(page, "Curvature", title)[1] == expected
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert _column(page, "Curvature", title)[1] == expected[::-1]
    other, names = _column(page, "Curvature", "group")
    other.locator("button").press("Space")
    assert head.get_attribute("aria-sort") == "none"
    assert _column(page, "Curvature", "group")[1] == sorted(names)


def test_cells_without_a_number_stand_at_the_end_whichever_way(visit):
    page = visit("broken")
    head, cells = _column(page, "Curvature", "trace tr H")
    for _ in range(2):
        head.locator("button").click()
        assert _column(page, "Curvature", "trace tr H")[1] == ["8.00", "not measured"]
    assert len(cells) == 2


def _contrasts(page):
    """Return the contrast of every text of the page with its background, as WCAG 2 has it."""
    return page.evaluate("""() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
      const ground = (one) => {
        for (; one; one = one.parentElement) {
          const colour = parse(getComputedStyle(one).backgroundColor);
          if (colour.length < 4 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
      };
      const found = [];
      for (const one of document.querySelectorAll('body *')) {
        const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !one.getClientRects().length || one.closest('script')) continue;
        const style = getComputedStyle(one), inside = one.closest('svg');
        const [a, b] = [light(parse(inside ? style.fill : style.color)), light(ground(one))];
        found.push([one.textContent.trim().slice(0, 30),
          (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
      }
      return found;
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(visit, scheme):
    page = visit("several", scheme=scheme)
    found = _contrasts(page)
    assert len(found) > 100
    assert [one for one in found if one[1] < 4.5] == []


def test_a_switch_turns_the_page_dark_and_back(visit):
    page = visit("several")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    button = page.locator("#theme")
    button.press("Enter")
    assert page.evaluate(ground) == "rgb(22, 24, 29)" and button.inner_text() == "Light"
    assert min(contrast for _, contrast in _contrasts(page)) >= 4.5
    button.click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)" and button.inner_text() == "Dark"


def test_print_is_light_and_holds_what_is_folded(visit):
    page = visit("several", scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert (
        page.evaluate("document.querySelectorAll('details:not([open]):not(.settings)').length") == 0
    )
    assert min(contrast for _, contrast in _contrasts(page)) >= 4.5
    assert not page.locator("#theme").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0


def _painted(page, number=0):
    """Return the shares of a canvas that are not empty, and how many colours there are."""
    return page.evaluate(
        """(number) => {
          const canvas = document.querySelectorAll('#turning canvas')[number];
          const copy = Object.assign(document.createElement('canvas'),
            { width: canvas.width, height: canvas.height });
          const pen = copy.getContext('2d', { willReadFrequently: true });
          pen.drawImage(canvas, 0, 0);
          const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
          const colours = new Set();
          let painted = 0, sum = 0;
          for (let i = 0; i < data.length; i += 4) {
            if (!data[i + 3]) continue;
            painted++;
            sum = (sum * 31 + data[i] * 7 + data[i + 1] * 3 + i) % 1000003;
            colours.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
          }
          return [painted / (data.length / 4), colours.size, sum];
        }""",
        number,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_planes_turn_together_by_keys_and_by_the_pointer(visit, width):
    page = visit("several", width)
    canvases = page.locator("#turning canvas")
    assert canvases.count() == 9
    share, colours, first = _painted(page)
    assert share > 0.1 and colours > 20
    other = _painted(page, 1)[2]
    canvases.first.press("ArrowLeft")
    turned = _painted(page)[2]
    assert turned != first and _painted(page, 1)[2] != other
    canvases.first.press("0")
    assert _painted(page)[2] == first
    canvases.first.press("+")
    assert _painted(page)[0] > share
    canvases.first.scroll_into_view_if_needed()
    box = canvases.first.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    before = _painted(page)[2]
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 10, steps=4)
    page.mouse.up()
    assert _painted(page)[2] != before


def test_the_pointer_reads_a_measured_loss(visit):
    page = visit("one")
    canvas = page.locator("#turning canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    said = set()
    for share in range(20, 80, 4):
        page.mouse.move(box["x"] + box["width"] * 0.53, box["y"] + box["height"] * share / 100)
        said.add(page.locator("#turning output").inner_text())
    steps = [-1.0, -0.5, 0.0, 0.5, 1.0]
    known = {f"{1 + a * a + b * b:.4g}" for a in steps for b in steps}
    read = {text.rpartition(": ")[2] for text in said if text}
    assert read and read <= known


def test_a_figure_opens_in_its_full_size_and_comes_back(visit):
    page = visit("several", 390)
    figure = page.locator("#figure-flatness")
    small = figure.locator("svg").bounding_box()["width"]
    figure.locator("button").press("Enter")
    assert page.locator("dialog svg").bounding_box()["width"] > 1.5 * small
    page.keyboard.press("Escape")
    assert page.locator("dialog svg").count() == 0
    assert figure.locator("svg").bounding_box()["width"] == small
    assert page.evaluate("document.activeElement.textContent") == "Enlarge"


def test_the_command_is_copied(visit):
    page = visit("one")
    button = page.locator("button.copy")
    button.click()
    page.wait_for_function("document.querySelector('button.copy').textContent !== 'Copy'")
    if button.inner_text() == "Copied":
        page.context.grant_permissions(["clipboard-read"])
        copied = page.evaluate("navigator.clipboard.readText()")
    else:
        copied = page.evaluate("getSelection().toString()")
    assert copied == "flatkit analyze 'my runs/ckpt.pt'"


def test_a_hostile_name_is_only_text(visit):
    page = visit("hostile")
    assert page.evaluate("window.hit") is None
    assert page.locator("tbody th").first.inner_text() == HOSTILE_NAME
    assert page.locator("#turning h3").first.inner_text() == HOSTILE_NAME + "0"


def test_all_is_reached_by_the_keyboard(visit):
    page = visit("one")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.closest('section, header')?.id ?? 'header'")
        )
    assert {"header", "numbers", "figures", "planes", "provenance"} <= reached


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_is_broken_over_two_lines(visit, width):
    page = visit("several", width)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    heights = page.evaluate("""() => [...document.querySelectorAll('td[data-number]')].map((one) =>
      (one.clientHeight - 8) / parseFloat(getComputedStyle(one).fontSize))""")
    assert len(heights) > 50 and max(heights) < 2.4
