"""Actions through the real motion stage on a virtual clock, and as a bag to look at."""
