"""`moe4 verify`: the checks of a finished release."""
