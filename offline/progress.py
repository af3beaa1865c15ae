"""Progress bars, and what they show beside what rich has."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


def bars(*columns: ProgressColumn | str, transient: bool = False) -> Progress:
    """Bars on standard error: what each is of, the bar, then the columns given.

    Args:
        transient: they vanish when all is done.
    """
    first = (TextColumn("{task.description}"), BarColumn())
    return Progress(*first, *columns, console=Console(stderr=True), transient=transient)


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
