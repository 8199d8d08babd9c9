"""Tables that are drawn as work goes on."""

import time

import pytest
from rich.text import Text

from flatkit.render.screen import NotebookScreen, TerminalScreen


class Place:
    """What a notebook gives for a place in the output of a cell."""

    def __init__(self, html):
        self.shown = [html.data]

    def update(self, html):
        self.shown.append(html.data)


def test_a_notebook_shows_the_last_table_below_what_was_said_and_nothing_in_the_end(monkeypatch):
    places = []

    def display(html, *, display_id):
        assert display_id
        places.append(Place(html))
        return places[0]

    monkeypatch.setattr("IPython.display.display", display)
    screen = NotebookScreen()
    screen.say(Text("the plan"))
    screen.open()
    screen.draw(lambda: Text("table 1"))
    screen.draw(lambda: pytest.fail("drawn too soon"))
    screen.say(Text("a first word"))
    time.sleep(0.3)
    screen.draw(lambda: Text("table 2"))
    screen.close()
    (place,) = places
    assert "the plan" in place.shown[0] and "table" not in place.shown[0]
    assert "the plan" in place.shown[1] and "table 1" in place.shown[1]
    assert "a first word" in place.shown[-2] and "table 2" in place.shown[-2]
    assert "the plan" not in place.shown[-2] and place.shown[-1] == ""


def test_what_a_terminal_was_told_stays_on_stderr(capsys):
    screen = TerminalScreen()
    screen.open()
    screen.draw(lambda: Text("a table"))
    screen.say(Text("a word"))
    screen.close()
    shown = capsys.readouterr()
    assert "a word" in shown.err and not shown.out
