"""What a run will need and how fast it may be, found out before there is any hardware."""
