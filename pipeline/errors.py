"""The one error that a person is meant to read."""


class UserError(Exception):
    """Something that a person can put right: the message names the field or file, the value and the remedy, in a line."""
