"""Is a recording fit to train on, or to judge by? One file per question."""
