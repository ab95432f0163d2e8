"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """Bad input or a bad environment, told in one line that says what to change.

    The command line prints the line and exits with code 2. Anything else that is raised is a defect of ours.
    """
