"""The errors that a person is meant to read."""


class UserError(Exception):
    """Something that a person can put right: one line that names the field or file, the value and the remedy."""


class LastingError(UserError):
    """Trouble with storage that waiting doesn't mend: a full disk, refused credentials."""


class DivergedError(UserError):
    """A loss or gradient that is not finite."""


class NoMemoryError(UserError):
    """A worker ran out of memory, its device's or its host's; the same again would, too."""


class StoppedError(Exception):
    """The job was asked to stop (SIGTERM, Ctrl-C); the same command goes on where it stopped."""
