"""How far an error may be from that of all images like those of the set."""


def wilson(wrong: int, seen: int) -> tuple[float, float]:
    """The 95 % interval of the error, as fractions (Wilson 1927): of a set that is a sample of images like them."""
    if not seen:
        return 0.0, 1.0
    z = 1.959964  # of 95 %
    error, weight = wrong / seen, z * z / seen
    middle = (error + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (error * (1 - error) / seen + weight / 4 / seen) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
