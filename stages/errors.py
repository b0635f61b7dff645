"""Everything that can go wrong by a user's hand, each with the command or change that mends it.

The command line turns these into exit codes (musicldm_cli/app.py); a library caller catches them by class.
"""


class MusicldmError(Exception):
    """One sentence that says what is wrong and where, and one that says how to mend it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self):  # type: ignore[no-untyped-def]  # so that it crosses process borders whole
        return (type(self), (self.message, self.remedy))


class UsageError(MusicldmError):
    """The command's arguments do not fit together or have impossible values (exit 2)."""


class ParamsError(MusicldmError):
    """params.yaml is missing, malformed, or has impossible values (exit 3)."""


class DataError(MusicldmError):
    """Audio, captions, manifests, shards or the disk under them are not as they must be (exit 4)."""


class DiskFullError(DataError):
    """The disk or quota under a result is used up, or would be."""


class ModelError(MusicldmError):
    """A model folder or checkpoint is missing, altered or of another kind (exit 5)."""


class MissingDependencyError(MusicldmError):
    """A package or program that this command needs is not installed (exit 6)."""


class GateError(MusicldmError):
    """The work was done, and a gate the user set did not pass (exit 7)."""


class Interrupted(MusicldmError):
    """The work was stopped by a signal, its state saved; the same command goes on (exit 130)."""
