"""Convolution and attention in the forms that each platform is fast at."""
