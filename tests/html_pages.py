"""Read HTML pages strictly."""

from html.parser import HTMLParser


class Balance(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    EMPTY = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: bytes) -> Balance:
    found = Balance()
    found.feed(page.decode())
    found.close()
    assert not found.open
    return found
