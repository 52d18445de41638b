"""The error of everything that is wrong with files of a data set."""


class DataError(ValueError):
    """A raw or prepared file is not what it should be; the message names it and says what to do."""
