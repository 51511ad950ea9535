"""What a user can mend: one line with the remedy, exit 2, no traceback."""


class UserError(ValueError):
    """Wrong input or a wrong environment; the message names the remedy."""
