"""What all who read figures must agree on."""

MEAN, WORST = "mean", "worst"  # beside the languages in every set's figures
LOWER_IS_BETTER = ("loss", "bits_per_byte")  # of the other metrics a higher value is better
