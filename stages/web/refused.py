"""What both servers answer to a request that they do not accept."""


class Refused(Exception):
    """HTTP status and one sentence for the person in front of the page."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
