"""Progress bars: of a download, of a look through a store, and of an evaluation."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from p2pnode.models.catalogue_entry import CatalogueEntry


class FolderProgress:
    """The folders of a store that were looked through: a bar on a terminal, events with ``--json``."""

    def __init__(self, output: Output, total: int) -> None:
        self._output, self._total = output, total
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int) -> None:
        if self._output.as_json:
            self._output.report("gc.progress", {"folders": done, "of": self._total})
            return
        if self._progress is None:
            if done == self._total:
                return  # it took no time
            from rich.progress import Progress

            self._progress = Progress(console=self._output.console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task("folders", total=self._total)
        if self._task is not None:
            self._progress.update(self._task, completed=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


class ItemsProgress:
    """How many items of a task set were answered, and rightly: a bar on a terminal, nothing with ``--json``,
    where each item is an event."""

    def __init__(self, output: Output, total: int) -> None:
        self._output, self._total = output, total
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, right: int) -> None:
        if self._progress is None or self._task is None:
            return
        self._progress.update(self._task, completed=done, description=f"items, {right} right")

    def __enter__(self) -> Self:
        if not self._output.as_json:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._output.console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task("items, 0 right", total=self._total)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


class PullProgress:
    """Call it with ``(done, total)`` bytes; it draws on stderr, or prints events with ``--json``."""

    def __init__(self, output: Output, name: str) -> None:
        self._output, self._name = output, name
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._output.as_json:
            self._output.report("model.progress", {"name": self._name, "done": done, "total": total})
            return
        if self._progress is None:
            if done == total:
                return  # it was here already: there is nothing to watch
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=self._output.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(f"model      {self._name}", total=total)
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def begins(self, entry: CatalogueEntry) -> None:
        """Show the licence of what is about to be downloaded."""
        from p2pnode.models.licences import licence_words, tell_licence

        def report(name: str, fields: dict[str, object]) -> None:
            self._output.report(name, fields, text=licence_words(fields))

        tell_licence(report, entry)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
