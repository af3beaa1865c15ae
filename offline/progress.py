"""What progress bars show beside what rich has."""

from rich.progress import ProgressColumn, Task
from rich.text import Text


class Rate(ProgressColumn):
    """How fast a task goes, once that is known."""

    def __init__(self, form: str) -> None:
        """
        Args:
            form: of the speed, such as `{:.0f} rows/s`.
        """
        super().__init__()
        self._form = form

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else self._form.format(task.speed))
