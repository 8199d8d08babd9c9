"""The folder of a run: which files it holds, and when a run may write there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flatkit.errors import InvalidArgumentError
from flatkit.files.atomic import check_writable


@dataclass(frozen=True)
class RunFolder:
    """Where a run leaves its files.

    >>> RunFolder(Path("runs/gam")).kept(10).as_posix()
    'runs/gam/epoch-0010.pt'
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the last whole epoch."""
        return self.path / "ckpt.pt"

    @property
    def history(self) -> Path:
        """One row an epoch, as JSON."""
        return self.path / "history.json"

    @property
    def average(self) -> Path:
        """The checkpoint of the moving average of the weights."""
        return self.path / "ema.pt"

    @property
    def curvature(self) -> Path:
        """The eigenvalues that were tracked, as JSON."""
        return self.path / "curvature.json"

    @property
    def curvature_log(self) -> Path:
        """The folder of TensorBoard's log of them, a run of its own: its steps are no epochs."""
        return self.path / "tensorboard" / "curvature"

    def kept(self, epoch: int) -> Path:
        """Return the checkpoint that is kept of an epoch."""
        return self.path / f"epoch-{epoch:04d}.pt"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to mix two runs, before anything is done.

        Raises:
            InvalidArgumentError: there is a run and neither flag was given, both flags were
                given, or there is nothing to resume.
            OutputError: the folder cannot be written.
        """
        if resume and overwrite:
            raise InvalidArgumentError("choose one of resume and overwrite, not both")
        if resume and not self.checkpoint.is_file():
            raise InvalidArgumentError(
                f"nothing to resume: there is no {self.checkpoint}; start a run without `resume`"
            )
        # Any file of a run, not the checkpoint alone: what
        # is left of a deleted run would mix with this.
        if not (resume or overwrite) and any(self._files()):
            raise InvalidArgumentError(
                f"{self.path} already holds a run: continue it with `resume`, replace it with "
                "`overwrite`, or choose another `out`"
            )
        check_writable(self.checkpoint)

    def clear(self) -> None:
        """Remove the files of an earlier run, its last checkpoint last."""
        self.sweep()
        for file in [*self.path.glob("tensorboard/**/events.out.tfevents.*"), *self._files()]:
            file.unlink()

    def sweep(self) -> None:
        """Remove what a run that was killed while writing left beside its files."""
        names = ("ckpt.pt", "ema.pt", "history.json", "history.csv", "curvature.json")
        for name in (*names, "epoch-[0-9]*.pt"):
            # So `write_atomically` names what it has not renamed yet.
            for file in self.path.glob(f".{name}.*"):
                file.unlink()

    def _files(self) -> Iterator[Path]:
        yield from sorted(self.path.glob("epoch-[0-9]*.pt"))
        files = (self.path / "history.csv", self.average, self.curvature, self.history)
        # The checkpoint last: a kill in between leaves a run that can still be resumed.
        yield from (file for file in (*files, self.checkpoint) if file.exists())
