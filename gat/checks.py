"""What layers and models ask of their arguments."""


def check_probability(name: str, p: float) -> None:
    """Raise ValueError, which names the argument, unless p is in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name} is {p}; a probability lies between 0 and 1")
