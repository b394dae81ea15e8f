"""The exceptions that mean "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what the user supplied: a flag, a file, a name.

    The message is one sentence that names the thing, its value, what is allowed and what to do. The command line
    prints it without a traceback and exits with code 2; from Python it is an ordinary ``ValueError``. Of a value that
    makes it longer than ``LONGEST`` characters the middle is left out.
    """

    LONGEST = 2000

    def __init__(self, message: str):
        if len(message) > self.LONGEST:
            message = f"{message[: self.LONGEST // 2]} … {message[-self.LONGEST // 2 :]}"
        super().__init__(message)


class RankError(UserError):
    """A ``UserError`` raised on one rank only; the others wait or fail, so it is printed with the rank."""


class Interrupted(KeyboardInterrupt):
    """A training that was asked to stop has stopped; its state is on the disk.

    Attributes
    ----------
    signal : int
        The number of the signal that asked.
    state_file : str
        Where the state is.
    """

    def __init__(self, number: int, state_file: str):
        super().__init__(f"interrupted by signal {number}")
        self.signal, self.state_file = number, state_file
