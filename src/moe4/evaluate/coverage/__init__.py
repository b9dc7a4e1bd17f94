"""`moe4 coverage`: which experts calibration data reach, and what they share with the tasks."""
