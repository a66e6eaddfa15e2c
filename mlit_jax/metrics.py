"""What all who read figures must agree on."""

LOWER_IS_BETTER = ("loss", "bits_per_byte")  # of the other metrics a higher value is better
