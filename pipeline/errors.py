"""The one error that a person is meant to read."""


class UserError(Exception):
    """Something that a person can put right: one line that names the field or file, the value and the remedy."""
