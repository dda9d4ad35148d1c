"""What the person at the keyboard can mend."""


class UserError(Exception):
    """Something that the person at the keyboard can mend; the message says how."""
