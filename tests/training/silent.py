"""A reporter for tests of training."""


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.records, self.notices, self.starts = [], [], []

    def start(self, step, total_steps):
        self.starts.append((step, total_steps))

    def record(self, record):
        self.records.append(record)

    def notice(self, text):
        self.notices.append(text)
