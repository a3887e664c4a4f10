"""Every error a person can cause: what was wrong, where, what to do. Each class carries its exit code."""


class PmfError(Exception):
    """Base of all expected errors. ``str(error)`` is the one line shown on stderr."""

    exit_code = 1


class TrainingError(PmfError):
    """Training cannot go on, for instance because the loss is no longer finite."""


class ProcessError(PmfError):
    """Another process of the same run is gone, or was never found."""


class OutputError(PmfError):
    """A result could not be written, for instance because the disk is full."""


class UsageError(PmfError):
    """A flag, setting or path that cannot be used as given."""

    exit_code = 2


class DataError(PmfError):
    """Ratings, titles or archives that cannot be read as such."""

    exit_code = 3


class ModelError(PmfError):
    """A model file that is missing, damaged, foreign or too new."""

    exit_code = 4


class UnknownIdError(PmfError):
    """A user or movie that the model does not know."""

    exit_code = 5


class NetworkError(PmfError):
    """A download that failed or did not bring the published bytes."""

    exit_code = 6


class GateError(PmfError):
    """A score that misses the bound it was asked to meet."""

    exit_code = 7
