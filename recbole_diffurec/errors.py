"""The exceptions that mean "the user can mend this"."""

import importlib.util


class UserError(ValueError):
    """A mistake in what the user supplied: a flag, a file, a name.

    The message is one sentence that names the thing, its value, what is allowed and what to do. The command line
    prints it without a traceback and exits with code 2; from Python it is an ordinary ``ValueError``. Of a value that
    makes it longer than ``LONGEST`` characters the middle is left out; it is one line, and what a terminal would obey
    is written out.
    """

    LONGEST = 2000

    def __init__(self, message: str):
        if len(message) > self.LONGEST:
            message = f"{message[: self.LONGEST // 2]} … {message[-self.LONGEST // 2 :]}"
        line = " ".join(part.strip() for part in message.splitlines()) if "\n" in message else message
        super().__init__("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line))


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


def pip_install(requirement: str, upgrade: bool = False) -> str:
    """The command that installs a package, or an extra of this one: from an index, and from a clone.

    Parameters
    ----------
    requirement : str
        The name of a package, or an extra of this one in brackets, such as ``[serve]``.
    upgrade : bool, default False
        Whether it is there already.
    """
    command = "pip install --upgrade" if upgrade else "pip install"
    if not requirement.startswith("["):
        return f"{command} {requirement}"
    return f"{command} 'recbole-diffurec{requirement}', or in a clone {command} -e '.{requirement}'"


def cannot_import(who: str, error: ImportError, requirement: str) -> UserError:
    """What is said of a package that cannot be imported: it is missing, or it is there and something is wrong with it.

    Parameters
    ----------
    who : str
        Needs it.
    error : ImportError
        What importing it raised.
    requirement : str
        What pip is asked for, see ``pip_install``.
    """
    missing = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and missing and importlib.util.find_spec(missing) is None:
        return UserError(f"{who} needs {missing}, which is not installed: {pip_install(requirement)}")
    reason = " ".join(str(error).split())
    return UserError(f"{who} needs what cannot be imported here ({reason}): {pip_install(requirement, upgrade=True)}")
